"""The language model that is measured, SmolLM2-135M-Instruct: prompts, adapters, a repository with tasks.

Adapters have random weights: what they cost does not depend on their values.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.harness.serving import pin, serving
from benchmarks.harness.subject import Cores, subject
from benchmarks.load.streams import Prompt
from fmplex import Backbone, Generator, Pretrained, Task
from fmplex_backend.families.model_files import find_model
from testing.adapters import lora, save_adapter
from testing.language_models import SMOL
from testing.repositories import write_backbone
from testing.servers import Serving

MODEL = f"package:{SMOL}"
BACKBONE = "smollm2"
TARGETS = ("q_proj", "v_proj")  # PEFT's default for Llama
WIDE = ("q_proj", "k_proj", "v_proj", "o_proj")
RANK = 8
SEQUENCES = 16  # of a step, ours and the baselines' batches


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt, and how many tokens are to be generated, whatever they are."""

    task: str
    text: str
    tokens: int


@cache
def model_directory() -> Path:
    """The directory of the model's weights."""
    return find_model(MODEL, Path("benchmarks"))


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(model_directory())


@cache
def _words() -> list[str]:
    """Words that are one token each, after a space."""
    found = (tokenizer().decode([number]) for number in range(1000, 30_000))
    return [word for word in found if word.startswith(" ") and word[1:].isascii() and word[1:].isalpha()]


def texts(lengths: Sequence[int], seed: int) -> list[str]:
    """Random texts of exactly so many tokens each; no two begin alike."""
    words, numbers = _words(), np.random.default_rng(seed)
    found = ["".join(words[pick] for pick in numbers.integers(len(words), size=length)) for length in lengths]
    wrong = [text for text, length in zip(found, lengths, strict=True) if len(tokenizer()(text)["input_ids"]) != length]
    if wrong:
        raise RuntimeError(f"{len(wrong)} texts have other lengths than they should, e.g. {wrong[0][:80]!r}")
    return found


def prompts(length: int, tokens: int, count: int, seed: int) -> list[Prompt]:
    """So many prompts of one length, each to be answered with so many tokens."""
    return [Prompt(each, tokens) for each in texts([length] * count, seed)]


def write_adapters(folder: Path, count: int, *, targets: Sequence[str] = TARGETS) -> list[Path]:
    """PEFT directories with random LoRA weights of rank 8."""
    shape = AutoConfig.from_pretrained(model_directory())
    adapters = []
    for number in range(count):
        with torch.device("meta"):  # only the names and shapes of the model's weights matter
            model = AutoModelForCausalLM.from_config(shape)
        name = folder / f"adapter{number}"
        adapters.append(save_adapter(name, model, lora(RANK, *targets), seed=number))
    return adapters


def write_tasks(
    repository: Path, adapters: Mapping[str, Path | None], weights: Mapping[str, float] | None = None
) -> None:
    """Tasks that take the text as it is and answer greedily; None: without an adapter."""
    backbone = Backbone(BACKBONE, repository=repository)
    for name, adapter in adapters.items():
        pretrained = Pretrained(adapter) if adapter else None
        weight = (weights or {}).get(name, 1.0)
        generator = Generator(chat=False, temperature=0, ignore_eos=True)
        Task(name, backbone, adapter=pretrained, decoder=generator, weight=weight).save()


def write_repository(repository: Path, adapters: Mapping[str, Path | None], **parameters: Any) -> None:
    """The backbone with one thread, and its tasks; `parameters` are further ones of its config, and `weights`."""
    weights = parameters.pop("weights", None)
    given = {"threads": "1", "max_sequences": str(SEQUENCES), **parameters}
    own = subject()
    write_backbone(
        repository, BACKBONE, model=MODEL, max_batch_size=0, kind=own.kind, family="causal-lm", dtype=own.dtype, **given
    )
    write_tasks(repository, adapters, weights)


@contextlib.contextmanager
def served(adapters: Mapping[str, Path | None], *, cores: Cores | None = None, **parameters: Any) -> Iterator[Serving]:
    """A server: the backbone's process on the model cores, Triton on the others."""
    cores = cores or subject().apart
    with tempfile.TemporaryDirectory() as folder:
        write_repository(Path(folder), adapters, **parameters)
        with serving(Path(folder)) as server:
            pin(server.process, *cores.others)
            pin(server.stub(BACKBONE), *cores.models)
            yield server


def wishes(tokens: int) -> str:
    """`sampling_parameters` for an answer of so many tokens."""
    return json.dumps({"temperature": 0, "max_tokens": tokens, "ignore_eos": True})
