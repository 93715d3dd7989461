"""Greedy: whether language-model tasks say on the server, mixed, what each says alone.

200 prompts over six tasks of SmolLM2-135M-Instruct in float32 (without an adapter, with a system prompt, with LoRA of
ranks 4 to 32 on various modules), under 32 concurrent streams, against transformers' `generate` of the model with that
task's adapter merged by PEFT, prompt by prompt and token for token. A first difference is excused where the two best
logits there lie within 1e-4, and counted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.harness.language_model import BACKBONE, MODEL, model_directory, texts, tokenizer
from benchmarks.harness.serving import serving
from fmplex import Backbone, Client, Generated, Generator, Pretrained, Task
from testing.adapters import lora, save_adapter
from testing.repositories import write_backbone

PROMPTS, STREAMS, TOKENS, NEAR = 200, 32, 32, 1e-4
SCALE = 0.03  # of LoRA's random weights: answers differ, and stay words
SYSTEM = "You answer in one short sentence."
ADAPTERS: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "attention": (8, ("q_proj", "k_proj", "v_proj", "o_proj")),
    "small": (4, ("q_proj", "v_proj")),
    "feedforward": (16, ("gate_proj", "up_proj", "down_proj")),
    "large": (32, ("q_proj", "v_proj", "down_proj")),
}
TASKS = ("plain", "system", *ADAPTERS)
QUESTIONS = (
    "What is the capital of France?",
    "Write a line about 日本 and the sea.",
    "Count from one to ten.",
    "Who wrote Hamlet, and when? 🙂",
    "Name three colours.",
)


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and the task that it is for."""

    task: str
    text: str


def questions(count: int) -> list[Question]:
    """Sentences, and random words of 4 to 150 tokens, over all tasks in turn."""
    lengths = [int(length) for length in np.random.default_rng(1).integers(4, 150, size=count)]
    words = texts(lengths, 1)
    return [
        Question(TASKS[place % len(TASKS)], QUESTIONS[place % len(QUESTIONS)] + (words[place] if place % 3 else ""))
        for place in range(count)
    ]


def write(repository: Path, adapters: Path) -> None:
    """The backbone and its tasks."""
    write_backbone(repository, BACKBONE, model=MODEL, max_batch_size=0, family="causal-lm", dtype="float32")
    backbone = Backbone(BACKBONE, repository=repository)
    Task("plain", backbone, decoder=_decoder()).save()
    Task("system", backbone, decoder=_decoder(SYSTEM)).save()
    for seed, (name, (rank, targets)) in enumerate(ADAPTERS.items()):
        with torch.device("meta"):  # only the names and shapes of the model's weights matter
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_directory()))
        saved = save_adapter(adapters / name, model, lora(rank, *targets), seed=seed, scale=SCALE)
        Task(name, backbone, adapter=Pretrained(saved), decoder=_decoder()).save()


def _decoder(system: str = "") -> Generator:
    return Generator(system=system, temperature=0, max_tokens=TOKENS, logprobs=0)


def asked(url: str, question: Question) -> list[int]:
    """The tokens that a task streams: its logprobs name each."""
    with Client(url, timeout=600) as client:
        parts = [part for part in client.stream(question.task, question.text) if isinstance(part, Generated)]
        return [int(token) for part in parts for each in part.logprobs or () for token in each]


class Alone:
    """Each task's model, merged."""

    def __init__(self, adapters: Path) -> None:
        self.adapters = adapters
        self.models: dict[str, Any] = {}

    def said(self, question: Question) -> tuple[list[int], Any]:
        """The answer's tokens, and the logits of each."""
        prompt = self._prompt(question)
        found = self._model(question.task).generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return found.sequences[0, len(prompt) :].tolist(), found.logits

    def _model(self, task: str) -> Any:
        if task not in self.models:
            model: Any = AutoModelForCausalLM.from_pretrained(model_directory(), dtype=torch.float32)
            if task in ADAPTERS:
                model = PeftModel.from_pretrained(model, self.adapters / task).merge_and_unload()
            self.models[task] = model
        return self.models[task]

    @staticmethod
    def _prompt(question: Question) -> list[int]:
        turns = [{"role": "user", "content": question.text}]
        if question.task == "system":
            turns.insert(0, {"role": "system", "content": SYSTEM})
        found = tokenizer().apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        return list(found["input_ids"])


def difference(ours: list[int], theirs: list[int], logits: Any) -> float | None:
    """None where they are equal; else how far the two best logits lie apart where they differ first."""
    if ours == theirs:
        return None
    pairs = zip(ours, theirs, strict=False)
    place = next((number for number, (one, other) in enumerate(pairs) if one != other), None)
    if place is None:  # one ends where the other goes on
        return float("inf")
    best = logits[place][0].topk(2).values
    return float(best[0] - best[1])


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """One row."""
    asks = questions(PROMPTS // 10 if quick else PROMPTS)
    with tempfile.TemporaryDirectory() as folder:
        repository, adapters = Path(folder, "repository"), Path(folder, "adapters")
        write(repository, adapters)
        with serving(repository) as server, ThreadPoolExecutor(STREAMS) as pool:
            answers = list(pool.map(lambda question: asked(server.grpc_url, question), asks))
        alone = Alone(adapters)
        found = [difference(ours, *alone.said(each)) for each, ours in zip(asks, answers, strict=True)]
    gaps = [gap for gap in found if gap is not None]
    return [
        {
            "prompts": len(asks),
            "tokens": sum(map(len, answers)),
            "distinct": len({tuple(answer) for answer in answers}),
            "equal": len(asks) - len(gaps),
            "excused": sum(gap < NEAR for gap in gaps),
            "wrong": sum(gap >= NEAR for gap in gaps),
            "gaps": gaps,
            "streams": STREAMS,
        }
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """A line."""
    for row in rows:
        print(
            f"{row['equal']} of {row['prompts']} answers ({row['tokens']} tokens, {row['distinct']} different answers) "
            f"are equal token for token under {row['streams']} streams; {row['excused']} differ first where the best "
            f"two logits lie within {NEAR:g}, {row['wrong']} elsewhere (target 0, "
            f"{'MISSED' if row['wrong'] else 'met'})"
        )


if __name__ == "__main__":
    show(run())
