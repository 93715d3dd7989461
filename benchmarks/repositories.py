"""Model repositories for measurements: the subject with any number of tasks.

Weights of adapters and heads are random: what they cost does not depend on their values. Answers are checked in
tests/triton, not here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer

from benchmarks.subject import subject
from fmplex_backend.entries import TaskEntry
from fmplex_backend.extensions.adapters import WEIGHTS
from fmplex_backend.runtime.huggingface import find_model

BACKBONE = "minilm"
LABELS = ("negative", "positive")


def model_directory() -> Path:
    """Where the subject's files lie."""
    return find_model(subject().model, Path("benchmarks"))


def write_backbone(repository: Path, **parameters: str) -> None:
    """A backbone with one thread, so that it lives on one core."""
    own = subject()
    settings = {"model": own.model, "dtype": own.dtype, "family": "text-encoder", "threads": "1", **parameters}
    lines = [
        f'name: "{BACKBONE}"',
        'backend: "fmplex"',
        f"max_batch_size: {own.max_batch}",
        f"instance_group [ {{ kind: {own.kind} count: 1 }} ]",
        *(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in settings.items()),
    ]
    (repository / BACKBONE / "1").mkdir(parents=True)
    (repository / BACKBONE / "config.pbtxt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_task(
    repository: Path,
    name: str,
    vfm: int,
    *,
    adapter: Path | None = None,
    weight: float = 1.0,
    slo_ms: float | None = None,
    max_queue: int | None = None,
) -> None:
    """A classification task; `adapter` is a PEFT directory to copy."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    section = {"kind": "peft", "path": "adapter"} if adapter else None
    decoder = {"kind": "classification", "labels": list(LABELS)}
    (version / "task.json").write_text(
        json.dumps({"family": "text-encoder", "adapter": section, "decoder": decoder}), encoding="utf-8"
    )
    weights = {"weight": torch.randn(len(LABELS), subject().hidden), "bias": torch.zeros(len(LABELS))}
    save_file(weights, version / "decoder.safetensors")
    if adapter:
        target = version / "adapter"
        target.mkdir()
        for file in adapter.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
    sizes = (("SCORES", len(LABELS)), ("LABEL", 1))
    wishes = {"weight": weight, "slo_ms": slo_ms, "max_queue": max_queue}
    entry = TaskEntry(name, BACKBONE, vfm, "text-encoder", "classification", subject().max_batch, sizes=sizes, **wishes)  # type: ignore[arg-type]
    (repository / name / "config.pbtxt").write_text(entry.to_pbtxt(), encoding="utf-8")


def write_adapters(folder: Path, count: int, *, ranks: Sequence[int] = (8,), targets: Sequence[str] = ()) -> list[Path]:
    """PEFT directories with random LoRA weights, ranks taken in turn."""
    shape = AutoConfig.from_pretrained(model_directory())
    models: dict[int, PeftModel] = {}  # by rank
    adapters = []
    for number in range(count):
        rank = ranks[number % len(ranks)]
        if rank not in models:
            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets or subject().targets))
            with torch.device("meta"):  # names and shapes are all that is wanted of the model
                models[rank] = get_peft_model(AutoModel.from_config(shape), config)
        target = folder / f"adapter{number}"
        target.mkdir(parents=True)
        empty = get_peft_model_state_dict(models[rank])
        save_file({name: torch.randn(each.shape) / 50 for name, each in empty.items()}, target / WEIGHTS)
        models[rank].peft_config["default"].save_pretrained(str(target))
        adapters.append(target)
    return adapters


def texts_of_length(tokens: int, count: int, seed: int = 0) -> list[str]:
    """Texts of exactly so many tokens (times the subject's stretch), specials included, all different."""
    tokens *= subject().stretch
    tokenizer = AutoTokenizer.from_pretrained(model_directory())
    words = [
        word for word, number in sorted(tokenizer.get_vocab().items()) if word.isascii() and word.isalpha() and number
    ]
    whole = [word for word in words if len(word) > 3][:4000]
    picks = torch.randint(len(whole), (count, tokens - 2), generator=torch.Generator().manual_seed(seed))
    texts = [" ".join(whole[pick] for pick in row) for row in picks.tolist()]
    wrong = [text for text in texts if len(tokenizer(text)["input_ids"]) != tokens]
    if wrong:
        raise RuntimeError(f"{len(wrong)} texts are not {tokens} tokens long")
    return texts
