"""Deadlines: three tasks with SLOs of 50, 100 and 250 ms at 60 to 110% load; the share of requests within them.

* bfq: the tasks' SLOs are in their config; a batch does not grow beyond what its earliest deadline allows;
* no cut-off: the same scheduler, without SLOs in the config;
* fifo: batches in order of arrival.

16 tokens, Poisson, equal rates; load is relative to the highest rate of bfq (closed loop, measured first). Latency is
measured at the client, from the time at which a request was due.
"""

from __future__ import annotations

import contextlib
import statistics
from typing import Any

from benchmarks.harness.arms import Arm, Task, shared
from benchmarks.harness.compare import interleave, pace, ratio, spread, text
from benchmarks.harness.drawing import picture
from benchmarks.harness.repositories import texts_of_length
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Outcome, Plan, Stream
from benchmarks.load.arrivals import poisson

TOKENS = 16
SLOS = {"fast": 50.0, "medium": 100.0, "slow": 250.0}
LOADS = (0.6, 0.8, 1.1)
ARMS = {"bfq": "#0b6e4f", "no cut-off": "#8fb996", "fifo": "#c44536"}


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row per load."""
    rounds, seconds, warmup = pace(quick=quick)
    texts = texts_of_length(TOKENS, 512 * len(SLOS))
    own = {name: texts[number :: len(SLOS)] for number, name in enumerate(SLOS)}  # equal ones would share rows
    told, untold = [Task(name, slo_ms=slo) for name, slo in SLOS.items()], [Task(name) for name in SLOS]
    with contextlib.ExitStack() as stack:
        arms = {
            "bfq": stack.enter_context(shared(told)),
            "no cut-off": stack.enter_context(shared(untold)),
            "fifo": stack.enter_context(shared(told, scheduler="fifo")),
        }
        generator = stack.enter_context(Generator(subject().apart.generator))
        full = Plan(arms["no cut-off"].url, [Stream([name], own[name], 32) for name in SLOS], seconds, warmup)
        capacity = statistics.median(generator.run(full).per_second for _ in range(3))

        def measure(arm: Arm, load: float) -> Any:
            def once(number: int) -> Outcome:
                rate = load * capacity / len(SLOS)
                streams = [
                    Stream([name], own[name], times=poisson(rate, seconds + warmup, 10 * number + seed), slo_ms=slo)
                    for seed, (name, slo) in enumerate(SLOS.items())
                ]
                return generator.run(Plan(arm.url, streams, seconds, warmup))

            return once

        rows = []
        for load in (0.8,) if quick else LOADS:
            seen = interleave({name: measure(arm, load) for name, arm in arms.items()}, rounds)
            rows.append({"load": load, "capacity": capacity} | _row(seen))
        return rows


def _row(seen: dict[str, list[Outcome]]) -> dict[str, Any]:
    met = {name: [each.within_slo / each.offered for each in results] for name, results in seen.items()}
    return {
        "met": {name: spread(shares) for name, shares in met.items()},
        "by_task": {
            name: {
                task: statistics.median(each.tasks[task].within_slo / each.tasks[task].offered for each in results)
                for task in SLOS
            }
            for name, results in seen.items()
        },
        "against": {name: ratio(met["bfq"], met[name]) for name in met if name != "bfq"},
        "per_second": {name: statistics.median(each.per_second for each in results) for name, results in seen.items()},
        "rounds": len(met["bfq"]),
        "cores": str(subject().apart),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A line per load."""
    for row in rows:
        parts = []
        for name, met in row["met"].items():
            tasks = "/".join(f"{share:.2f}" for share in row["by_task"][name].values())
            parts.append(f"{name} {text(met)} ({tasks})")
        print(
            f"{row['load']:.0%} load: share within its SLO (of {'/'.join(f'{slo:.0f}' for slo in SLOS.values())} ms): "
            f"{', '.join(parts)}; texts/s {', '.join(f'{rate:.0f}' for rate in row['per_second'].values())}"
        )


def draw(rows: list[dict[str, Any]]) -> None:
    """Share within the SLO by load, a panel per SLO."""

    def panels(every: Any) -> None:
        for axes, (task, slo) in zip(every, SLOS.items(), strict=True):
            for name, colour in ARMS.items():
                shares = [row["by_task"][name][task] for row in rows]
                axes.plot([row["load"] for row in rows], shares, "o-", color=colour, label=name)
            axes.set_ylim(0, 1.02)
            axes.set_xlabel("load")
            axes.set_title(f"SLO {slo:.0f} ms")
        every[0].set_ylabel("share of requests within it")
        every[0].legend(fontsize=7)

    picture("deadlines", panels, columns=len(SLOS), width=3.2)


if __name__ == "__main__":
    show(run())
