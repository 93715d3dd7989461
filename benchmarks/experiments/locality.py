"""Locality: tokens of prompts computed, and the time it takes, where memory does not hold all beginnings of prompts.

SmolLM2-135M-Instruct, one core, the backend's engine and runtime without a server. Two tasks of equal weight, each with
the same number of prompts for each of four beginnings, all of them queued at once in an order drawn at random. Memory
for keys and values holds about half of the beginnings. The same requests run with `locality_s` 0 and more in turn,
each time from empty memory. Seconds are those of the processor. `apart` is the most by which the two tasks' seconds of
service differed after a step.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.experiments.prefixes import MODEL, WORDS
from benchmarks.harness.compare import interleave, ratio, spread, text
from benchmarks.harness.subject import subject
from fmplex_backend.types import Outcome, Request, Vfm

TASKS, BEGINNINGS, TOKENS, TURN, ANSWER = (
    2,
    4,
    128,
    12,
    8,
)  # tokens of a beginning, words of a turn, tokens of an answer
BLOCKS, SEQUENCES = 48, 8
BLOCK_BYTES = 16 * 46080  # in float32
QUANTA = (0.0, 1.0, 4.0)


class Seen(NamedTuple):
    """Of a run of all requests."""

    rate: float  # requests per second of the processor
    computed: float  # the part of the prompts' tokens that was computed
    apart: float  # seconds


class Backlog:
    """An engine, and requests that are queued all at once."""

    def __init__(self, folder: Path, each: int) -> None:
        from fmplex_backend.families.causal_lm.parameters import CausalLmConfig
        from fmplex_backend.families.causal_lm.runtime import CausalLmRuntime
        from fmplex_backend.scheduling import Bfq, CostModel
        from fmplex_backend.serving.engine import Engine

        config = CausalLmConfig(
            model=MODEL,
            family="causal-lm",
            dtype=subject().dtype,  # type: ignore[arg-type]
            threads=1,
            kv_cache_bytes=BLOCKS * BLOCK_BYTES // (1 if subject().dtype == "float32" else 2),
        )
        self.runtime = CausalLmRuntime(config, folder / "config.pbtxt", "cpu")
        cost = CostModel()
        cost.seed(self.runtime.profile())
        tokens = self.runtime.max_batch_tokens
        self.scheduler = Bfq(cost, max_items=SEQUENCES, max_tokens=tokens, has_room=self.runtime.has_room)
        self.engine = Engine(self.runtime, self.scheduler, cost, self._hand_over)
        self.engine.preparer = self  # type: ignore[assignment]
        (folder / "task.json").write_text(
            json.dumps({"family": "causal-lm", "decoder": {"chat": False, "temperature": 0}})
        )
        self.vfms = [Vfm(number, f"task{number}") for number in range(TASKS)]
        for vfm in self.vfms:
            self.engine.attach(vfm, self.runtime.load(folder))
        self.prompts = [self._prompts(each, seed) for seed in range(TASKS)]

    def resume(self) -> None:
        """Nobody waits to be prepared."""

    def run(self, quantum: float) -> Seen:
        """All requests."""
        from fmplex_backend.scheduling import Locality

        for vfm in self.vfms:
            self.runtime.memory.blocks.drop(vfm.extensions)
        self.runtime.memory.locality_s = quantum
        self.scheduler.locality = Locality(quantum, self.runtime.kept) if quantum else None
        requests = [
            self._request(vfm, prompt) for vfm, own in zip(self.vfms, self.prompts, strict=True) for prompt in own
        ]
        answers = len(requests) * (ANSWER - 1)
        before = [(vfm.service, vfm.engine.tokens) for vfm in self.vfms]
        self.engine.add_requests(requests)
        apart, start = 0.0, time.process_time()
        while self.engine.step(wait=False) or self.scheduler.queued:
            one, two = (vfm.service - service for vfm, (service, _) in zip(self.vfms, before, strict=True))
            if all(vfm.queue for vfm in self.vfms):
                apart = max(apart, abs(one - two))
        seconds = time.process_time() - start
        computed = sum(vfm.engine.tokens - tokens for vfm, (_, tokens) in zip(self.vfms, before, strict=True)) - answers
        asked = sum(len(request.prepared.asked.prompt) for request in requests)
        return Seen(len(requests) / seconds, computed / asked, apart)

    def _prompts(self, each: int, seed: int) -> list[str]:
        random = np.random.default_rng(seed)
        beginnings = [self._beginning(random) for _ in range(BEGINNINGS)]
        prompts = [f"{beginning} {' '.join(random.choice(WORDS, TURN))}" for beginning in beginnings * each]
        random.shuffle(prompts)
        return prompts

    def _beginning(self, random: np.random.Generator) -> str:
        tokens = self.runtime.tokenizer(", ".join(random.choice(WORDS, 2 * TOKENS)))["input_ids"][:TOKENS]
        return str(self.runtime.tokenizer.decode(tokens))

    def _request(self, vfm: Vfm, prompt: str) -> Request:
        wishes = json.dumps({"max_tokens": ANSWER, "ignore_eos": True}).encode()
        inputs = {
            "text_input": np.array([[prompt.encode()]], dtype=np.object_),
            "sampling_parameters": np.array([[wishes]], dtype=np.object_),
        }
        request = Request(vfm, inputs, (), self.engine.clock(), lambda *_: None)
        request.extensions = vfm.extensions
        self.runtime.prepare(request)
        return request

    def _hand_over(self, request: Request, outcome: Outcome) -> None:
        """Nobody waits for the answer."""


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row for each quantum."""
    rounds, each = (1, 2) if quick else (3, 5)
    with tempfile.TemporaryDirectory() as folder:
        backlog = Backlog(Path(folder), each)

        def measure(quantum: float) -> Callable[[int], Seen]:
            return lambda _: backlog.run(quantum)

        seen = interleave({f"{quantum:g}": measure(quantum) for quantum in QUANTA}, rounds)
    base = [run.rate for run in seen["0"]]
    return [
        {
            "locality_s": float(name),
            "ratio": ratio([run.rate for run in runs], base),
            "rate": spread([run.rate for run in runs]),
            "computed": spread([run.computed for run in runs]),
            "apart_s": spread([run.apart for run in runs]),
            "requests": TASKS * BEGINNINGS * each,
            "rounds": rounds,
        }
        for name, runs in seen.items()
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """A line for each quantum."""
    for row in rows:
        print(
            f"locality_s {row['locality_s']:g}: {text(row['computed'], '.2f')} of the prompts' tokens computed, "
            f"{text(row['rate'], '.2f')} requests/s, {text(row['ratio'])} of without; tasks at most "
            f"{text(row['apart_s'], '.2f')} s apart; {row['rounds']} rounds of {row['requests']} requests"
        )


if __name__ == "__main__":
    show(run())
