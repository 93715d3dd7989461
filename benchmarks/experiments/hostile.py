"""Hostile tasks: a victim's latency beside a task that sends what is worst for others.

The victim sends texts of 16 tokens at a quarter of the capacity. Beside it, one task at a time:

* ordinary: backlogged with texts of 16 tokens, from 64 clients; what the others are compared with;
* word: a text of 50 MB that is one word;
* spaces: the same of spaces;
* windows: texts that are read in 64 windows of 256 tokens.

Target: the victim's p99 beside each is at most twice that beside the ordinary task, and none of its requests fails. The
hostile task's clients are a process of their own, so that what 50 MB cost a client does not delay the victim's.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.harness.arms import Arm, Task, shared
from benchmarks.harness.compare import against, interleave, pace, ratio, spread, text
from benchmarks.harness.repositories import texts_of_length
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Plan, Stream, Tally
from benchmarks.load.arrivals import poisson

TOKENS = 16
CLIENTS = 64
MEGABYTES = 50
TARGET = 2.0
LONGER = 3.0  # factor of a round's length: a p99 of few requests is their maximum
TASKS = (Task("victim"), Task("ordinary"), Task("long", encoder={"windows": 64, "max_length": 256}))


def streams(*, quick: bool) -> dict[str, Stream]:
    """What is sent beside the victim."""
    size = (MEGABYTES // 10 if quick else MEGABYTES) * 1_000_000
    return {
        "ordinary": Stream(["ordinary"], texts_of_length(TOKENS, 256), CLIENTS),
        "word": Stream(["ordinary"], ["x" * size, "y" * size], 2),  # equal ones would share rows
        "spaces": Stream(["ordinary"], [" " * size], 2),
        "windows": Stream(["long"], [" ".join(texts_of_length(256, 80, seed)) for seed in range(4)], 4),
    }


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row per hostile task."""
    rounds, seconds, warmup = pace(quick=quick)
    with contextlib.ExitStack() as stack:
        arm = stack.enter_context(shared(TASKS))
        victims, hostile = (stack.enter_context(Generator(subject().apart.generator)) for _ in range(2))
        texts = texts_of_length(TOKENS, 256, seed=1)
        alone = victims.run(Plan(arm.url, [Stream(["ordinary"], texts, CLIENTS)], seconds, warmup))
        rate = alone.per_second / 4
        length = LONGER * seconds + warmup

        def beside(stream: Stream, number: int) -> Tally:
            times = poisson(rate, length, 100 + number)  # the same beside every task
            victim = Stream(["victim"], texts, times=times)
            return _run(arm, victims, hostile, victim, stream, LONGER * seconds, warmup)

        arms = {
            name: (lambda number, stream=stream: beside(stream, number))
            for name, stream in streams(quick=quick).items()
        }
        seen = interleave(arms, rounds)
        return [_row(name, results, seen["ordinary"]) for name, results in seen.items()]


def _run(
    arm: Arm, victims: Generator, hostile: Generator, victim: Stream, other: Stream, seconds: float, warmup: float
) -> Tally:
    """The victim's tally beside the other stream."""
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(hostile.run, Plan(arm.url, [other], seconds, warmup))
        tally: Tally = victims.run(Plan(arm.url, [victim], seconds, warmup)).tasks["victim"]
        beside.result()
        return tally


def _row(name: str, results: list[Tally], ordinary: list[Tally]) -> dict[str, Any]:
    p99 = [each.p99_ms for each in results]
    return {
        "beside": name,
        "p99_ms": spread(p99),
        "max_ms": max(each.max_ms for each in results),
        "against_ordinary": ratio(p99, [each.p99_ms for each in ordinary]),
        "p50_ms": statistics.median(each.p50_ms for each in results),
        "failures": sum(each.failures for each in results),
        "offered": math.fsum(each.offered for each in results),
        "rounds": len(results),
        "cores": str(subject().apart),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A line per hostile task."""
    for row in rows:
        line = f"beside {row['beside']}: the victim's p99 {text(row['p99_ms'], '.0f')} ms, {row['failures']} failed"
        if row["beside"] != "ordinary":
            ratios = row["against_ordinary"]
            line += f"; {text(ratios, '.2f')} times that beside ordinary ("
            line += f"{against(ratios['median'], TARGET, at_most=True)})"
        print(line)


if __name__ == "__main__":
    show(run())
