"""Model repositories for measurements: the subject with any number of tasks.

Weights of adapters and heads are random: what they cost does not depend on their values. Answers are checked in
tests/triton, not here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from benchmarks.harness.subject import subject
from fmplex_backend.families.model_files import find_model
from testing import repositories
from testing.adapters import lora, save_adapter

BACKBONE = "minilm"
LABELS = ("negative", "positive")


def model_directory() -> Path:
    """The directory of the subject's weights."""
    return find_model(subject().model, Path("benchmarks"))


def write_backbone(repository: Path, **parameters: str) -> None:
    """The subject as a backbone, with one thread unless `parameters` say otherwise."""
    own = subject()
    settings = {"dtype": own.dtype, "family": "text-encoder", "threads": "1", **parameters}
    repositories.write_backbone(
        repository, BACKBONE, model=own.model, max_batch_size=own.max_batch, kind=own.kind, **settings
    )


def write_task(
    repository: Path,
    name: str,
    vfm: int,
    *,
    adapter: Path | None = None,
    weight: float = 1.0,
    slo_ms: float | None = None,
    max_queue: int | None = None,
    encoder: Mapping[str, Any] | None = None,
) -> Path:
    """A classification task of two labels; `adapter` is a PEFT directory to copy. Returns the task's directory."""
    limits = {"weight": weight, "slo_ms": slo_ms, "max_queue": max_queue}
    parameters = {key: f"{value:g}" for key, value in limits.items() if value is not None}
    return repositories.write_task(repository, _task(name, vfm, adapter, parameters, dict(encoder or {})))


def write_version(repository: Path, name: str, number: int, *, adapter: Path | None = None) -> None:
    """A further version of a task that `write_task` has written, with the same head; moved in whole."""
    with tempfile.TemporaryDirectory(dir=repository.parent) as aside:
        version = repositories.write_version(Path(aside, str(number)), _task(name, 0, adapter, {}, {}))
        version.rename(repository / name / str(number))


def _task(
    name: str, vfm: int, adapter: Path | None, parameters: dict[str, str], encoder: dict[str, Any]
) -> repositories.Task:
    return repositories.Task(
        name,
        vfm,
        adapter=adapter,
        labels=len(LABELS),
        max_batch_size=subject().max_batch,
        backbone=BACKBONE,
        model=model_directory(),
        hidden=subject().hidden,
        options={"labels": LABELS},
        parameters=parameters,
        encoder=encoder,
    )


def write_adapters(folder: Path, count: int, *, ranks: Sequence[int] = (8,), targets: Sequence[str] = ()) -> list[Path]:
    """PEFT directories with random LoRA weights, ranks taken in turn."""
    shape = AutoConfig.from_pretrained(model_directory())
    adapters = []
    for number in range(count):
        with torch.device("meta"):  # only the names and shapes of the model's weights matter
            model = AutoModel.from_config(shape)
        config = lora(ranks[number % len(ranks)], *(targets or subject().targets))
        adapters.append(save_adapter(folder / f"adapter{number}", model, config, seed=number))
    return adapters


def texts_of_length(tokens: int, count: int, seed: int = 0) -> list[str]:
    """Different texts of exactly so many tokens (times the subject's stretch), special tokens included."""
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
