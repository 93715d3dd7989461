"""What a task must answer: Transformers and PEFT on one text alone, in float32, and the head from its files.

Nothing here comes from the backend.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from tolerances import Tolerance, tolerance
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from testing.clients import Outputs

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "gelu": torch.nn.functional.gelu}


class Encoder:
    """A model that runs one row of tokens at a time, and keeps the results."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._known: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, ids: Sequence[int]) -> Tensor:
        """[t] -> [t, h]."""
        if (row := tuple(ids)) not in self._known:
            mask = torch.ones(1, len(row), dtype=torch.long)
            with torch.no_grad():
                states = self.model(input_ids=torch.tensor([row]), attention_mask=mask).last_hidden_state
            self._known[row] = states[0]
        return self._known[row]


@cache
def _tokenizer(model: Path) -> Any:
    return AutoTokenizer.from_pretrained(model)


@cache
def _bare(model: Path) -> Encoder:
    return Encoder(AutoModel.from_pretrained(model, dtype=torch.float32).eval())


def _adapted(model: Path, adapter: Path) -> Encoder:
    """The model with the adapter, as PEFT loads it; of an adapter of a classifier, the classifier's encoder."""
    config = PeftConfig.from_pretrained(str(adapter))
    inside = (config.auto_mapping or {}).get("base_model_class", "").endswith("ForSequenceClassification")
    auto = AutoModelForSequenceClassification if inside else AutoModel
    whole = PeftModel.from_pretrained(auto.from_pretrained(model, dtype=torch.float32), str(adapter)).eval()
    return Encoder(whole.get_base_model().base_model if inside else whole)


class HeadReference:
    """What the decoder of a version makes of a pooled vector; needs `decoder`, its section, and `head`, its tensors."""

    decoder: dict[str, Any]
    head: dict[str, Tensor]

    def _read_decoder(self, document: dict[str, Any], version: Path) -> None:
        self.decoder = document["decoder"]
        weights = self.decoder.get("weights", "decoder.safetensors")
        self.head = {} if self.decoder["kind"] == "embedding" else load_file(version / weights)

    def _normalised(self, pooled: Tensor) -> Tensor:
        normal = self.decoder.get("normalize", self.decoder["kind"] == "embedding")
        return torch.nn.functional.normalize(pooled, dim=0) if normal else pooled

    def _pooled(self, pooled: Tensor) -> Outputs:
        kind = self.decoder["kind"]
        if kind == "embedding":
            return {"EMBEDDING": pooled.numpy()}
        if kind == "similarity":
            vectors = torch.nn.functional.normalize(self.head["vectors"].float(), dim=1)
            scores = vectors @ torch.nn.functional.normalize(pooled, dim=0)
            return {"SCORES": scores.numpy(), "LABEL": self._best(scores)}
        if kind == "nearest":
            return self._nearest(torch.nn.functional.normalize(pooled, dim=0))
        values = self._linear(pooled)
        if kind == "regression":
            return {"SCORES": values.numpy()}
        if kind == "multi-label":
            return self._several(torch.sigmoid(values))
        scores = torch.softmax(values, dim=0)
        return {"SCORES": scores.numpy(), "LABEL": self._best(scores)}

    def _nearest(self, unit: Tensor) -> Outputs:
        """Votes; none may be so close that rounding decides."""
        vectors = torch.nn.functional.normalize(self.head["vectors"].float(), dim=1)
        cosines = vectors @ unit
        near = cosines.topk(self.decoder.get("k", 5)).indices
        count = len(self.decoder["labels"])
        votes = torch.bincount(self.head["labels"][near], minlength=count).float() / len(near)
        sums = torch.zeros(count).index_add(0, self.head["labels"][near], 1 + cosines[near] / (4 * len(near)))
        return {"SCORES": votes.numpy(), "LABEL": self._best(sums)}

    def _linear(self, x: Tensor) -> Tensor:
        if "weight" in self.head:
            return x @ self.head["weight"].float().T + self.head["bias"].float()
        activation = ACTIVATIONS[self.decoder.get("activation", "tanh")]
        for layer in range(len(self.head) // 2):
            x = activation(x) if layer else x
            x = x @ self.head[f"{layer}.weight"].float().T + self.head[f"{layer}.bias"].float()
        return x

    def _best(self, scores: Tensor) -> npt.NDArray[Any]:
        return np.array([self.decoder["labels"][int(scores.argmax())]], dtype=np.object_)

    def _several(self, scores: Tensor) -> Outputs:
        threshold = self.decoder.get("threshold", 0.5)
        order = sorted(range(len(scores)), key=lambda label: -float(scores[label]))
        named = [self.decoder["labels"][label] for label in order if float(scores[label]) >= threshold]
        padded = named + [""] * (len(scores) - len(named))
        return {"SCORES": scores.numpy(), "LABEL": np.array(padded, dtype=np.object_)}


class Reference(HeadReference):
    """Computes what the version of a task must answer on a model; both are directories."""

    def __init__(self, model: Path, version: Path) -> None:
        document = json.loads((version / "task.json").read_text(encoding="utf-8"))
        self._read_decoder(document, version)
        encoder = document.get("encoder") or {}
        self.prefix: str = encoder.get("prefix", "")
        self.tokenizer = _tokenizer(model)
        adapter = document.get("adapter")
        self.encode = _adapted(model, version / adapter.get("path", "adapter")) if adapter else _bare(model)
        self.max_length = encoder.get("max_length") or _longest(self.tokenizer, self.encode.model.config)
        self._known: dict[str, Outputs] = {}

    def __call__(self, text: str) -> Outputs:
        """All outputs of one text by their client-side names, without the batch dim."""
        if text not in self._known:
            self._known[text] = self._compute(text)
        return self._known[text]

    def _compute(self, text: str) -> Outputs:
        cut = self.tokenizer(
            self.prefix + text,
            truncation=True,
            max_length=self.max_length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        hidden = self.encode(cut["input_ids"])
        if self.decoder["kind"] == "token-classification":
            outputs = self._tokens(hidden, cut["offset_mapping"], cut["special_tokens_mask"])
        else:
            outputs = self._pooled(self._pool(hidden))
        whole = self.tokenizer(self.prefix + text, truncation=False, verbose=False)["input_ids"]
        return {**outputs, "TRUNCATED": np.array([len(whole) > self.max_length])}

    def _pool(self, hidden: Tensor) -> Tensor:
        pooling = self.decoder.get("pooling", "mean")
        pooled = {"mean": hidden.mean(dim=0), "cls": hidden[0], "max": hidden.max(dim=0).values}[pooling]
        return self._normalised(pooled)

    def _tokens(self, hidden: Tensor, offsets: Sequence[tuple[int, int]], special: Sequence[int]) -> Outputs:
        skip = len(self.prefix)
        kept = [n for n, (_, end) in enumerate(offsets) if not special[n] and end > skip]
        scores = torch.softmax(self._linear(hidden[kept]), dim=1)
        labels = [self.decoder["labels"][int(row.argmax())] for row in scores]
        spans = [[max(0, offsets[n][0] - skip), offsets[n][1] - skip] for n in kept]
        return {
            "SCORES": scores.numpy(),
            "LABEL": np.array(labels, dtype=np.object_),
            "OFFSETS": np.array(spans, dtype=np.int32).reshape(-1, 2),
        }


def _longest(tokenizer: Any, config: Any) -> int:
    """The most tokens that the model takes, special ones included."""
    positions = int(getattr(config, "max_position_embeddings", 512))
    if config.model_type in ("roberta", "mpnet"):
        positions -= config.pad_token_id + 1
    return min(positions, int(tokenizer.model_max_length))


def difference(got: Outputs, row: int, expected: Outputs, allowed: Tolerance | None = None) -> str:
    """How one row of an answer differs from what was expected; empty where it does not."""
    allowed = allowed or tolerance()
    for name, want in expected.items():
        if name not in got or (name == "LABEL" and not allowed.settles(expected)):
            continue
        have = got[name][row]
        have, padding = have[: len(want)], have[len(want) :]
        problem = _differs(have, want, allowed) or _no_padding(padding)
        if problem:
            return f"{name}: {problem}"
    return ""


def _differs(have: npt.NDArray[Any], want: npt.NDArray[Any], allowed: Tolerance) -> str:
    if have.shape != want.shape:
        return f"shape {have.shape}, not {want.shape}"
    if want.dtype == np.object_:
        have = np.array([item.decode() if isinstance(item, bytes) else item for item in have], dtype=np.object_)
    if not np.issubdtype(want.dtype, np.floating):
        return "" if np.array_equal(have, want) else f"{have.tolist()}, not {want.tolist()}"
    if not np.isfinite(have).all():
        return "not finite"
    far = float(np.abs(have - want).max(initial=0.0))
    return "" if far < allowed.of(want) else f"off by {far:g}"


def _no_padding(rest: npt.NDArray[Any]) -> str:
    """Rows beyond an item's own length hold zero scores, empty labels and offsets of -1."""
    known = all(value in (b"", "", 0.0, -1) for value in rest.ravel().tolist())
    return "" if known else f"{rest.shape} rows too many"
