"""Streaming: language-model tasks on the real server, their tokens timed as they come to a client.

SmolLM2-135M-Instruct on one core, 16 sequences a step; Triton and the client on the other core.

* adapters: 32 streams over eight tasks with a LoRA of rank 8 on queries and values each, in turn with 32 over eight
  tasks without; prompts of 64 tokens, answers of 48.
* light: the time to the first token of a task that asks once at a time for 4 tokens to a prompt of 32, alone and beside
  a task with 32 streams of prompts of 128 tokens and answers of 64. Allowed is twice its p99 alone and one step of the
  backbone, which is the mean of those beside.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.compare import against, interleave, ratio, spread, text
from benchmarks.harness.language_model import prompts, served, write_adapters
from benchmarks.harness.subject import subject
from benchmarks.load.streams import Load, StreamPlan, Streams, Tally, percentile
from testing.servers import Serving

TASKS, STREAMS = 8, 32
OF_BARE, LIGHT = 0.90, 2.0
PUBLISHED_S = 1.1  # the account that /metrics shows is up to a second old


class Bench:
    """The server, and the process that streams."""

    def __init__(self, stack: contextlib.ExitStack, *, quick: bool) -> None:
        self.quick = quick
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        adapters: dict[str, Path | None] = {f"bare{number}": None for number in range(TASKS)}
        adapters |= {f"lora{number}": each for number, each in enumerate(write_adapters(folder, TASKS))}
        self.server = stack.enter_context(served(adapters | {"light": None, "heavy": None}))
        self.streams = stack.enter_context(Streams(subject().apart.generator))

    def run(self, loads: Sequence[Load], seconds: float, warmup: float = 2.0) -> dict[str, Tally]:
        return self.streams.good(StreamPlan(self.server.grpc_url, loads, seconds, warmup))

    # -- adapters

    def adapters(self) -> dict[str, Any]:
        rounds, seconds = (2, 4.0) if self.quick else (5, 6.0)

        def rate(kind: str) -> Callable[[int], float]:
            def measure(number: int) -> float:
                asked = prompts(64, 48, 4 * TASKS, 100 + number)
                loads = [Load(f"{kind}{n}", asked[n::TASKS], STREAMS // TASKS) for n in range(TASKS)]
                return sum(tally.whole for tally in self.run(loads, seconds).values()) / seconds

            return measure

        seen = interleave({kind: rate(kind) for kind in ("bare", "lora")}, rounds)
        return {
            "part": "adapters",
            "per_second": {kind: spread(rates) for kind, rates in seen.items()},
            "of_bare": ratio(seen["lora"], seen["bare"]),
            "rounds": rounds,
        }

    # -- light

    def light(self) -> dict[str, Any]:
        rounds, seconds = (1, 8.0) if self.quick else (4, 15.0)
        steps: list[float] = []

        def alone(number: int) -> list[float]:
            load = Load("light", prompts(32, 4, 64, 400 + number), 1)
            return self.run([load], seconds / 2)["light"].first_s

        def beside(number: int) -> list[float]:
            loads = [
                Load("light", prompts(32, 4, 64, 500 + number), 1),
                Load("heavy", prompts(128, 64, 2 * STREAMS, 600 + number), STREAMS),
            ]
            before = _steps(self.server)
            first = self.run(loads, seconds, warmup=4.0)["light"].first_s
            busy, count = (now - then for now, then in zip(_steps(self.server), before, strict=True))
            steps.append(busy / count)
            return first

        seen = interleave({"alone": alone, "beside": beside}, rounds)
        pooled = {name: [each for some in results for each in some] for name, results in seen.items()}
        p99 = {name: 1e3 * percentile(first, 99) for name, first in pooled.items()}
        step = 1e3 * statistics.median(steps)
        return {
            "part": "light",
            "p99_ms": p99,
            "p50_ms": {name: 1e3 * percentile(first, 50) for name, first in pooled.items()},
            "step_ms": step,
            "allowed_ms": LIGHT * p99["alone"] + step,
            "requests": {name: len(first) for name, first in pooled.items()},
            "rounds": rounds,
        }


def _steps(server: Serving) -> tuple[float, float]:
    """Seconds of all steps so far, and how many there were."""
    time.sleep(PUBLISHED_S)
    metrics = server.metrics()
    return metrics["fmplex_backbone_busy_seconds_total", "", ""], metrics["fmplex_backbone_batches_total", "", ""]


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row per part."""
    with contextlib.ExitStack() as stack:
        bench = Bench(stack, quick=quick)
        rows = [bench.adapters(), bench.light()]
        return [{**row, "cores": str(subject().apart)} for row in rows]


def show(rows: list[dict[str, Any]]) -> None:
    """A line or two per part."""
    for row in rows:
        {"adapters": _show_adapters, "light": _show_light}[row["part"]](row)


def _show_adapters(row: dict[str, Any]) -> None:
    print(
        f"eight adapters: {text(row['of_bare'])} of the tasks without "
        f"({against(row['of_bare']['median'], OF_BARE)}); tokens/s, prompts included: "
        + ", ".join(f"{name} {value['median']:.0f}" for name, value in row["per_second"].items())
        + f"; rounds: {row['rounds']}"
    )


def _show_light(row: dict[str, Any]) -> None:
    p99, p50 = row["p99_ms"], row["p50_ms"]
    allowed = row["allowed_ms"]
    print(
        f"a light task's first token beside a heavy one: p99 {p99['beside']:.0f} ms, alone {p99['alone']:.0f} "
        f"(p50 {p50['beside']:.0f} and {p50['alone']:.0f}); {p99['beside'] / allowed:.2f} of the {allowed:.0f} allowed "
        f"({against(p99['beside'] / allowed, 1.0, at_most=True)}); a step takes {row['step_ms']:.0f}; "
        f"{row['requests']['beside']} and {row['requests']['alone']} requests; rounds: {row['rounds']}"
    )


if __name__ == "__main__":
    show(run())
