"""Adapters: throughput of ten tasks when more and more of them have LoRA, and with many distinct adapters.

* of ten: 0, 2, 4, 8, 10 of ten tasks have LoRA of rank 8, the others a head alone; `mixed`: all ten, ranks 4 to 64.
* distinct: 2 to 64 tasks, each with a LoRA of its own, against ten tasks with none.

16 tokens, closed loop, 64 clients over all tasks in turn. The target is for all ten of rank 8, against none.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.arms import Arm, Task, shared
from benchmarks.harness.compare import against, interleave, pace, ratio, spread, text
from benchmarks.harness.drawing import COLOURS, picture, target_line
from benchmarks.harness.repositories import texts_of_length, write_adapters
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Outcome, closed

TOKENS = 16
TARGET = 0.90
PAPER = 40.5 / 73.1  # the authors' prototype, on its machine
RANKS = (4, 8, 16, 32, 64)
OF_TEN = (0, 2, 4, 8, 10)
DISTINCT = (2, 4, 8, 16, 64)


def points(*, quick: bool) -> dict[str, list[str]]:
    """The tasks that are called at each point."""
    of_ten = {f"{n} of 10": [f"lora{i}" for i in range(n)] + [f"head{i}" for i in range(10 - n)] for n in OF_TEN}
    mixed = {"mixed ranks": [f"mixed{i}" for i in range(10)]}
    distinct = {f"{n} distinct": [f"lora{i}" for i in range(n)] for n in DISTINCT}
    every = of_ten | mixed | distinct
    kept = ("0 of 10", "4 of 10", "10 of 10", "64 distinct")
    return {name: tasks for name, tasks in every.items() if not quick or name in kept}


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """All points in turn, on two servers: rank 8 and heads on one, mixed ranks on the other."""
    rounds, seconds, warmup = pace(quick=quick)
    texts = texts_of_length(TOKENS, 512)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        loras = write_adapters(Path(folder, "rank8"), max(DISTINCT))
        tasks = [Task(f"head{i}") for i in range(10)] + [Task(f"lora{i}", adapter=a) for i, a in enumerate(loras)]
        arms = {"rank 8": stack.enter_context(shared(tasks))}
        if not quick:
            mixed = write_adapters(Path(folder, "mixed"), 10, ranks=RANKS)
            tasks = [Task(f"mixed{i}", adapter=a) for i, a in enumerate(mixed)]
            arms["mixed"] = stack.enter_context(shared(tasks))
        generator = stack.enter_context(Generator(subject().apart.generator))

        def measure(names: list[str]) -> Any:
            arm: Arm = arms["mixed" if names[0].startswith("mixed") else "rank 8"]
            return lambda _: generator.run(closed(arm.url, names, texts, seconds=seconds, warmup=warmup))

        wanted = points(quick=quick)
        seen = interleave({name: measure(names) for name, names in wanted.items()}, rounds)
        return [_row(name, seen) for name in wanted]


def _row(name: str, seen: dict[str, list[Outcome]]) -> dict[str, Any]:
    rates = [each.per_second for each in seen[name]]
    return {
        "point": name,
        "per_second": spread(rates),
        "of_none": ratio(rates, [each.per_second for each in seen["0 of 10"]]),
        "batch_items": statistics.mean(each.batch_items for each in seen[name]),
        "failures": sum(each.failures for each in seen[name]),
        "ceiling": statistics.median(each.ceiling for each in seen[name]),
        "target": TARGET if name == "10 of 10" else None,
        "rounds": len(rates),
        "cores": str(subject().apart),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A line per point."""
    for row in rows:
        wanted = ""
        if row["target"]:
            wanted = f"({against(row['of_none']['median'], row['target'])}; the authors' prototype {PAPER:.2f}) "
        print(
            f"{row['point']} with LoRA: {text(row['of_none'])} of none {wanted}"
            f"{row['per_second']['median']:.0f} texts/s, batches of {row['batch_items']:.1f}; "
            f"the generator's ceiling {row['ceiling']:.0f}; {row['failures']} failed"
        )


def draw(rows: list[dict[str, Any]]) -> None:
    """A bar per point."""

    def bars(axes: Any) -> None:
        heights = [row["of_none"]["median"] for row in rows]
        low = [row["of_none"]["median"] - row["of_none"]["low"] for row in rows]
        high = [row["of_none"]["high"] - row["of_none"]["median"] for row in rows]
        axes.bar(range(len(rows)), heights, yerr=[low, high], color=COLOURS["bfq"])
        target_line(axes, TARGET, f"target for 10 of 10: {TARGET}")
        target_line(axes, PAPER, "authors' prototype, 10 of 10")
        axes.set_xticks(range(len(rows)), [row["point"].replace(" ", "\n", 1) for row in rows], fontsize=7)
        axes.set_ylabel("throughput against no LoRA")
        axes.legend(fontsize=7, loc="lower left")

    picture("adapters", bars, width=7.0)


if __name__ == "__main__":
    show(run())
