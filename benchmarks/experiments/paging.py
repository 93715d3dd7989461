"""Paging: how long a step waits for adapters that come back into memory.

Twenty tasks on SmolLM2-135M-Instruct, each with a LoRA of rank 8 on all four of attention's projections, and memory for
eight of them (`adapter_memory`). 16 sequences a step, prompts of 32 tokens, answers of 16, four of each task. The
backend's engine and runtime on one core, without a server; the same tasks with memory for all take turns. A step waits
for what the engine does between two steps to evict adapters and to put others into the bank; files are read on a thread
of their own, on the same core.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.compare import against, interleave, ratio, spread, text
from benchmarks.harness.language_model import WIDE, Ask, texts, write_adapters, write_repository
from benchmarks.harness.paging import Paging, Steps
from benchmarks.harness.subject import subject

TASKS, FIT, EACH = 20, 8, 4
PROMPT, TOKENS = 32, 16
STALL_MS = 20.0
WARM = 99  # the round before the first


def asks(number: int) -> list[Ask]:
    """Of a round: every task in turn, other texts in each round."""
    words = texts([PROMPT] * TASKS * EACH, number)
    return [Ask(f"task{place % TASKS}", word, TOKENS) for place, word in enumerate(words)]


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """One row."""
    rounds = 2 if quick else 5
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        made = write_adapters(folder / "adapters", TASKS, targets=WIDE)
        adapters = {f"task{number}": adapter for number, adapter in enumerate(made)}
        weights = made[0] / "adapter_model.safetensors"
        budgets = {"paged": weights.stat().st_size * FIT, "resident": 0}
        ways = {}
        for name, budget in budgets.items():
            write_repository(folder / name, adapters, adapter_memory=str(budget))
            ways[name] = stack.enter_context(Paging(folder / name))

        def measure(name: str) -> Callable[[int], Steps]:
            return lambda number: ways[name].run(asks(number))

        for name in ways:
            measure(name)(WARM)
        seen = interleave({name: measure(name) for name in ways}, rounds)
    return [_row(seen)]


def _row(seen: dict[str, list[Steps]]) -> dict[str, Any]:
    rates = {name: [each.generated / each.seconds for each in rounds] for name, rounds in seen.items()}
    stalls = [1e3 * stall for each in seen["paged"] for stall in each.paging if stall > 0]
    steps = {name: [1e3 * step for each in rounds for step in each.steps] for name, rounds in seen.items()}
    return {
        "loads": [each.loads for each in seen["paged"]],
        "stalls": len(stalls),
        "stall_ms": {f"p{percent}": float(np.percentile(stalls, percent)) for percent in (50, 99)},
        "stall_max_ms": max(stalls),
        "step_ms": {
            name: {f"p{percent}": float(np.percentile(own, percent)) for percent in (50, 99)}
            for name, own in steps.items()
        },
        "per_second": {name: spread(each) for name, each in rates.items()},
        "of_resident": ratio(rates["paged"], rates["resident"]),
        "rounds": len(seen["paged"]),
        "core": subject().apart.models[0],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Two lines."""
    for row in rows:
        longest, stall, steps = row["stall_max_ms"], row["stall_ms"], row["step_ms"]
        print(
            f"{TASKS} adapters where {FIT} fit: the longest that a step waits is {longest:.1f} ms "
            f"({against(longest, STALL_MS, at_most=True)}; p50 {stall['p50']:.2f}, p99 {stall['p99']:.2f}); "
            f"{sum(row['loads'])} came back in {row['rounds']} rounds\n"
            f"    steps p50 {steps['paged']['p50']:.0f} ms, p99 {steps['paged']['p99']:.0f}; where all fit "
            f"{steps['resident']['p50']:.0f} and {steps['resident']['p99']:.0f}; "
            f"tokens/s {text(row['of_resident'])} of those where all fit"
        )


if __name__ == "__main__":
    show(run())
