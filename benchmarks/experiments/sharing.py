"""Sharing: latency of several LoRA tasks on one backbone against a process for each, from 10% to 95% load. 16 tokens.

Load is relative to the highest rate of the shared arm (closed loop, measured first), Poisson, equal for all tasks. In
either layout all arms have the same cores: `apart` has the models on core 0 and Triton with the load generator on core
1; `spread` lets everything use both, so that partitioned can give each process a core of its own (where there are more
tasks than cores, several share one). The numbers of threads of the shared and the per-task arm are those that serve
most. Adapters are merged into the per-task models, which makes these as fast as possible. Every number of tasks is
measured on the same servers, where the remaining tasks are idle. `saturated` compares throughput, closed loop, 32
clients per task.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.arms import Arm, Task, lora_tasks, per_task, shared
from benchmarks.harness.compare import against, interleave, pace, ratio, spread, text
from benchmarks.harness.drawing import COLOURS, picture
from benchmarks.harness.repositories import texts_of_length
from benchmarks.harness.subject import Cores, subject
from benchmarks.load import Generator, Outcome, Plan, Stream
from benchmarks.load.arrivals import poisson

TOKENS = 16
MAIN = 4  # tasks of the load sweep
AT = 0.7
# Saturated rounds with more tasks are so many times as long: of eight processes on a core, each answers a batch about
# once a second.
LONGER = 3
OF_PER_TASK, OF_PARTITIONED = 0.5, 0.2
FIGURES = ("mean_ms", "p50_ms", "p95_ms", "p99_ms")


@dataclass(frozen=True, slots=True)
class Layout:
    """Cores and the arms that are compared on them."""

    name: str  # of a property of Subject
    arms: tuple[str, ...]
    counts: tuple[int, ...]
    loads: tuple[float, ...]  # of MAIN tasks; other counts get AT alone

    @property
    def cores(self) -> Cores:
        """The cores that every arm has."""
        return subject().apart if self.name == "apart" else subject().spread


LAYOUTS = (
    Layout("apart", ("shared", "per-task"), (2, MAIN, 8), (0.1, AT, 0.95)),
    Layout("spread", ("shared", "per-task", "partitioned"), (2, MAIN), (0.1, AT, 0.95)),
)


@dataclass
class Bench:
    """The arms of one layout and number of tasks."""

    layout: Layout
    tasks: list[Task]
    texts: list[str]
    generator: Generator
    arms: dict[str, Arm]
    seconds: float
    warmup: float
    capacity: float = 0.0

    def saturated(self, arm: Arm) -> Outcome:
        """Run a closed loop that saturates the arm."""
        longer = LONGER if len(self.tasks) > MAIN else 1
        return saturate(self.generator, arm, self.tasks, self.texts, longer * self.seconds)

    def loaded(self, arm: Arm, load: float, number: int) -> Outcome:
        """Run an open loop at `load` times the capacity."""
        rate = load * self.capacity / len(self.tasks)
        streams = [
            Stream([task.name], self.texts, times=poisson(rate, self.seconds + self.warmup, 100 * number + seed))
            for seed, task in enumerate(self.tasks)
        ]
        return self.generator.run(Plan(arm.url, streams, self.seconds, self.warmup))


def saturate(generator: Generator, arm: Arm, tasks: list[Task], texts: list[str], seconds: float) -> Outcome:
    """Closed loop, all tasks backlogged."""
    return generator.run(Plan(arm.url, [Stream([task.name], texts, 32) for task in tasks], seconds))


def options(layout: Layout, kind: str, *, quick: bool) -> tuple[int, ...]:
    """The numbers of threads that are tried; partitioned processes have one core each."""
    cores = len(layout.cores.models)
    if kind == "partitioned" or cores == 1:
        return (1,)
    if quick:
        return (cores,) if kind == "shared" else (1,)
    return (1, cores)


def started(
    stack: contextlib.ExitStack, kind: str, tasks: list[Task], layout: Layout, rate: Callable[[Arm], float], quick: bool
) -> tuple[Arm, dict[str, Any]]:
    """Start an arm with each number of threads and keep the one that serves most; returns it and what was measured."""
    tried: dict[int, tuple[Arm, contextlib.ExitStack]] = {}
    wanted = options(layout, kind, quick=quick)
    for threads in wanted:
        own = stack.enter_context(contextlib.ExitStack())
        tried[threads] = own.enter_context(_arm(kind, tasks, layout.cores, threads)), own
    rates = {threads: rate(arm) for threads, (arm, _) in tried.items()} if len(wanted) > 1 else {}
    best = max(rates, key=lambda threads: rates[threads], default=wanted[0])
    for threads in tried.keys() - {best}:
        tried[threads][1].close()
    return tried[best][0], {"threads": best, "swept": rates}


def _arm(kind: str, tasks: list[Task], cores: Cores, threads: int) -> contextlib.AbstractContextManager[Arm]:
    if kind == "shared":
        return shared(tasks, cores=cores, threads=threads)
    return per_task(tasks, cores=cores, partitioned=kind == "partitioned", threads=threads)


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Rows of each layout and number of tasks."""
    rounds, seconds, warmup = pace(quick=quick)
    texts = texts_of_length(TOKENS, 512)
    rows: list[dict[str, Any]] = []
    with lora_tasks(MAIN if quick else 8) as every:
        for layout in LAYOUTS:
            core = layout.cores.generator if layout.name == "apart" else None
            counts = (MAIN,) if quick else layout.counts
            tasks = every[: max(counts)]
            with contextlib.ExitStack() as stack:
                generator = stack.enter_context(Generator(core))

                def rate(arm: Arm, generator: Generator = generator) -> float:
                    return saturate(generator, arm, every[:MAIN], texts, seconds).per_second

                arms: dict[str, Arm] = {}
                best: dict[str, Any] = {}
                for kind in layout.arms[:2] if quick else layout.arms:
                    arms[kind], best[kind] = started(stack, kind, tasks, layout, rate, quick)
                for count in counts:
                    bench = Bench(layout, every[:count], texts, generator, arms, seconds, warmup)
                    rows += _rows(bench, rounds, quick, best)
    return rows


def _rows(bench: Bench, rounds: int, quick: bool, best: dict[str, Any]) -> list[dict[str, Any]]:
    def saturated(arm: Arm) -> Any:
        return lambda _: bench.saturated(arm)

    full = interleave({name: saturated(arm) for name, arm in bench.arms.items()}, rounds)
    bench.capacity = statistics.median(each.per_second for each in full["shared"])
    rows = [_row(bench, "saturated", full, best)]
    for load in bench.layout.loads if len(bench.tasks) == MAIN and not quick else (AT,):

        def loaded(arm: Arm, load: float = load) -> Any:
            return lambda number: bench.loaded(arm, load, number)

        rows.append(_row(bench, load, interleave({name: loaded(a) for name, a in bench.arms.items()}, rounds), best))
    return rows


def _row(bench: Bench, load: float | str, seen: dict[str, list[Outcome]], best: dict[str, Any]) -> dict[str, Any]:
    means = {name: [each.mean_ms for each in results] for name, results in seen.items()}
    rates = {name: [each.per_second for each in results] for name, results in seen.items()}
    others = [name for name in seen if name != "shared"]
    return {
        "layout": bench.layout.name,
        "cores": str(bench.layout.cores),
        "tasks": len(bench.tasks),
        "load": load,
        "capacity": bench.capacity,
        "chosen": best,
        "arms": {
            name: {figure: statistics.median(getattr(each, figure) for each in results) for figure in FIGURES}
            | {"per_second": spread(rates[name]), "failures": sum(each.failures for each in results)}
            for name, results in seen.items()
        },
        "mean_ratio": {name: ratio(means["shared"], means[name]) for name in others},
        "rate_ratio": {name: ratio(rates["shared"], rates[name]) for name in others},
        "late_p99_ms": max(each.late_p99_ms for results in seen.values() for each in results),
        "ceiling": statistics.median(each.ceiling for results in seen.values() for each in results),
        "rounds": len(seen["shared"]),
    }


def _target(row: dict[str, Any], name: str, value: float) -> str:
    if row["load"] == AT:
        return against(value, OF_PER_TASK if name == "per-task" else OF_PARTITIONED, at_most=True)
    return against(value, 1.0, at_most=True)


def show(rows: list[dict[str, Any]]) -> None:
    """A line per point, and the chosen threads per layout."""
    said = set()
    for row in rows:
        where = f"{row['layout']}, {row['tasks']} tasks"
        if row["layout"] not in said:
            said.add(row["layout"])
            picks = ", ".join(f"{name} {row['chosen'][name]['threads']}" for name in row["arms"])
            print(f"{row['layout']}: {row['cores']}; threads chosen by the sweep: {picks}")
        if row["load"] == "saturated":
            rates = ", ".join(f"{name} {arm['per_second']['median']:.0f}" for name, arm in row["arms"].items())
            won = ", ".join(
                f"{text(value, '.2f')} of {name}'s ({against(value['median'], 1.0)})"
                for name, value in row["rate_ratio"].items()
            )
            print(f"{where}, saturated: texts/s {rates}: {won}; the generator's ceiling {row['ceiling']:.0f}")
            continue
        figures = ", ".join(
            f"{name} {arm['mean_ms']:.0f}/{arm['p50_ms']:.0f}/{arm['p95_ms']:.0f}/{arm['p99_ms']:.0f}"
            for name, arm in row["arms"].items()
        )
        ratios = ", ".join(
            f"{text(value, '.2f')} of {name}'s ({_target(row, name, value['median'])})"
            for name, value in row["mean_ratio"].items()
        )
        print(f"{where}, {row['load']:.0%} load: mean/p50/p95/p99 ms {figures}; mean {ratios}")


def draw(rows: list[dict[str, Any]]) -> None:
    """Mean latency by load, a panel per layout."""

    def panels(every: Any) -> None:
        for axes, layout in zip(every, LAYOUTS, strict=True):
            own = [r for r in rows if (r["layout"], r["tasks"]) == (layout.name, MAIN) and r["load"] != "saturated"]
            for name in own[0]["arms"]:
                means = [row["arms"][name]["mean_ms"] for row in own]
                colour = COLOURS["bfq" if name == "shared" else name]
                axes.plot([row["load"] for row in own], means, "o-", color=colour, label=name)
            axes.set_yscale("log")
            axes.set_xlabel("load (of the shared arm's capacity)")
            axes.set_ylabel("mean latency, ms")
            axes.set_title(f"{MAIN} LoRA tasks, {layout.name}")
            axes.legend(fontsize=7)

    picture("sharing", panels, columns=2)


if __name__ == "__main__":
    show(run())
