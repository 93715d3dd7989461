"""Memory and number of tasks: proportional set size of all server processes, and how many tasks fit into a machine.

Shared: a server with LoRA tasks and one with head-only tasks, from 1 to 1,000. Per-task: up to ten plain models; what
lies beyond is extrapolated, and marked so. A server starts with one task and the others are added while it runs, up to
100; one with 1,000 starts with all of them. Every task has answered before memory is measured. With the most tasks of
its kind a server then gets 0.1 requests/s per task, Poisson, and must keep p99 under 500 ms. How many tasks fit into 8,
16 and 20 GiB is the least of three limits: a linear fit of memory by tasks, 70% of the highest rate, and the number of
tags.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.arms import Arm, Task, ask_all, head_tasks, per_task, shared, write_plain
from benchmarks.harness.compare import against
from benchmarks.harness.drawing import COLOURS, picture
from benchmarks.harness.repositories import texts_of_length, write_adapters, write_task
from benchmarks.harness.serving import pin, pss_mib
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Outcome, Plan, Stream, closed
from benchmarks.load.arrivals import poisson

TOKENS = 16
RATE = 0.1  # requests/s of each task
GROWN = 100  # tasks up to which a running server gets more of them
P99_MS = 500.0
SIZES_GIB = (8, 16, 20)
GROWTH, TIMES_AS_MANY = 1.3, 25.0
MOST_TAGS = 16384  # the upper bound of vfm_slots


@dataclass(frozen=True, slots=True)
class Kind:
    """A way of serving and the numbers of tasks that are measured."""

    name: str
    counts: tuple[int, ...]
    quick: tuple[int, ...]  # of a quick run; empty: left out


KINDS = (
    Kind("shared, LoRA", (1, 2, 5, 10, 20, 50, 100, 1000), ()),
    Kind("shared, head", (1, 2, 5, 10, 20, 50, 100, 1000), (1, 100)),
    Kind("per-task", (1, 2, 5, 10), (1, 3)),
)


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row per kind."""
    texts = texts_of_length(TOKENS, 256)
    seconds = 3.0 if quick else 10.0
    rows = []
    with Generator(subject().apart.generator) as generator:
        for kind in KINDS:
            counts = kind.quick if quick else kind.counts
            if not counts:
                continue
            row: dict[str, Any] = {"kind": kind.name, "mib": {}, "cores": str(subject().apart)}
            few, many = [n for n in counts if n <= GROWN], [n for n in counts if n > GROWN]
            with _arm(kind.name, 1, few[-1]) as (arm, tasks):
                for before, count in pairwise((1, *few)):
                    add(arm, tasks, before, count)
                    row["mib"][str(count)] = _memory(arm)
                if not many:
                    row |= _under_load(arm, [task.name for task in tasks], texts, generator, seconds)
            for count in many:
                with _arm(kind.name, count, count) as (arm, tasks):
                    ask_all(arm.server, tasks, rows=(1,))
                    row["mib"][str(count)] = _memory(arm)
                    row |= _under_load(arm, [task.name for task in tasks], texts, generator, seconds)
            rows.append(row | _line(row["mib"]))
    return [row | {"fits": _fits(row)} for row in rows]


@contextlib.contextmanager
def _arm(kind: str, first: int, count: int) -> Iterator[tuple[Arm, list[Task]]]:
    """A server with the first `first` of `count` tasks, and all of these tasks."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        tasks = head_tasks(count)
        if "LoRA" in kind:
            tasks = [Task(t.name, adapter=a) for t, a in zip(tasks, write_adapters(Path(folder), count), strict=True)]
        arm = stack.enter_context(per_task(tasks[:first]) if kind == "per-task" else shared(tasks[:first]))
        yield arm, tasks


def add(arm: Arm, tasks: list[Task], before: int, count: int) -> None:
    """Add tasks to a running server, from `before` up to `count`, and ask each once."""
    repository = arm.server.repository
    for number, task in enumerate(tasks[before:count], before):
        write(repository, arm, task, number)
        arm.server.load(task.name)
    for process in arm.server.stubs().values():
        pin(process, *subject().apart.models)
    ask_all(arm.server, tasks[before:count], rows=(1,))


def write(repository: Path, arm: Arm, task: Task, number: int) -> None:
    """A task's directory, as the arm serves it."""
    if arm.receipts:
        write_task(repository, task.name, number, adapter=task.adapter)
    else:
        write_plain(repository, task)


def _memory(arm: Arm) -> float:
    """Proportional set size of all processes in MiB; with a GPU the used part of its memory."""
    if subject().gpu:
        line = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return float(subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()[0])
    return pss_mib(arm.server)


def _under_load(arm: Arm, tasks: list[str], texts: list[str], generator: Generator, seconds: float) -> dict[str, Any]:
    """All tasks at RATE each (one Poisson process over the tasks in turn), then the highest rate, saturated."""
    times = poisson(RATE * len(tasks), seconds + 1, seed=1)
    outcome: Outcome = generator.run(Plan(arm.url, [Stream(tasks, texts, times=times)], seconds))
    most = generator.run(closed(arm.url, tasks, texts, seconds=5.0) if arm.receipts else _plain(arm, tasks, texts))
    return {
        "loaded_tasks": len(tasks),
        "p99_ms": outcome.p99_ms,
        "max_ms": outcome.max_ms,
        "requests": outcome.answered,
        "failures": outcome.failures,
        "most_per_second": most.per_second,
    }


def _plain(arm: Arm, tasks: list[str], texts: list[str]) -> Plan:
    return Plan(arm.url, [Stream(tasks, texts, 64)], 5.0)


def _line(mib: dict[str, float]) -> dict[str, float]:
    counts = [int(count) for count in mib]
    slope, base = np.polyfit(counts, list(mib.values()), 1)
    return {"base_mib": float(base), "per_task_mib": float(slope)}


def _fits(row: dict[str, Any]) -> dict[str, Any]:
    """The number of tasks that fit, by GiB, and which limit that is."""
    found = {}
    for size in SIZES_GIB:
        limits = {
            "memory": int((size * 1024 - row["base_mib"]) / max(row["per_task_mib"], 1e-3)),
            "load": int(0.7 * row["most_per_second"] / RATE),
        }
        if row["kind"] != "per-task":
            limits["tags"] = MOST_TAGS
        least = min(limits, key=lambda name: limits[name])
        found[str(size)] = {"tasks": limits[least], "limit": least}
    return found


def show(rows: list[dict[str, Any]]) -> None:
    """Memory, load, and the number of tasks that fit, per kind."""
    plain = next(row for row in rows if row["kind"] == "per-task")
    for row in rows:
        taken = {int(count): mib for count, mib in row["mib"].items()}
        most, one = max(taken), taken[min(taken)]
        measured = ", ".join(f"{count}: {mib:.0f}" for count, mib in taken.items())
        wanted = f" ({against(taken[most] / one, GROWTH, at_most=True)})" if row is not plain else ""
        print(f"{row['kind']}: MiB by tasks {measured}; {most} take {taken[most] / one:.2f} of one{wanted}")
        kept = against(row["p99_ms"], P99_MS, at_most=True)
        print(
            f"    {row['loaded_tasks']} tasks at {RATE} requests/s each: p99 {row['p99_ms']:.0f} ms ({kept}), "
            f"{row['requests']} answered, {row['failures']} failed"
        )
        fits = ", ".join(f"{size} GiB {fit['tasks']} (by {fit['limit']})" for size, fit in row["fits"].items())
        print(f"    extrapolated at {row['per_task_mib']:.2f} MiB a task: {fits}")
        if row is not plain:
            many = {size: fit["tasks"] / plain["fits"][size]["tasks"] for size, fit in row["fits"].items()}
            parts = ", ".join(f"{size} GiB {times:.0f}" for size, times in many.items())
            print(f"    times as many as per-task: {parts} ({against(min(many.values()), TIMES_AS_MANY)})")


def draw(rows: list[dict[str, Any]]) -> None:
    """Memory by tasks, both logarithmic."""
    colours = {"shared, LoRA": COLOURS["bfq"], "shared, head": "#8fb996", "per-task": COLOURS["per-task"]}

    def lines(axes: Any) -> None:
        for row in rows:
            counts = [int(count) for count in row["mib"]]
            axes.plot(counts, list(row["mib"].values()), "o-", color=colours[row["kind"]], label=row["kind"])
        plain = next(row for row in rows if row["kind"] == "per-task")
        far = [max(map(int, plain["mib"])), 100]
        line = [plain["base_mib"] + plain["per_task_mib"] * count for count in far]
        axes.plot(far, line, ":", color=COLOURS["per-task"], label="per-task, extrapolated")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("tasks")
        axes.set_ylabel("MiB")
        axes.legend(fontsize=7)

    picture("capacity", lines)


if __name__ == "__main__":
    show(run())
