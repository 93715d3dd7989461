"""Batch efficiency: batches that end at 95% of a full one's throughput, against batches that grow up to 32 rows.

Two servers that differ in `batch_efficiency` alone (0.95, the default, and 1) take turns, models on one core.

* beside: a victim without an SLO, Poisson at half of its share, beside one that is backlogged by 64 clients, both with
  a head alone, as in `isolation`; both of 16 or of 64 tokens, and a victim of 16 beside 64. The throughput is of both,
  each text counted as the seconds that texts of its length take in full batches.
* load: four LoRA tasks at 70% of the capacity of full batches, Poisson, as in `sharing`; 16 and 64 tokens.

Targets: the victim's p99 at most 0.6 of that with full batches at 16 tokens and 0.3 at 64, 0.95 of the throughput or
more, and a mean latency at 70% load that is no worse. What the same rule does from 30% to 100% load is in `simulator`.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.arms import Arm, Task, lora_tasks, shared
from benchmarks.harness.compare import against, interleave, ratio, spread, text
from benchmarks.harness.repositories import texts_of_length
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Outcome, Plan, Stream
from benchmarks.load.arrivals import poisson

PARTS = ("1", "0.95")  # of a full batch's throughput, as in the backbone's config
CLIENTS = 64
LORA = ("task0", "task1", "task2", "task3")
VICTIM, AGGRESSOR = "victim", "aggressor"
LOAD = 0.7
OF_THROUGHPUT = 0.95
WARMUP = 1.2


@dataclass(frozen=True, slots=True)
class Point:
    """Lengths of the texts, and what the victim's p99 may be of that with full batches."""

    case: str
    tokens: int
    victim_tokens: int
    at_most: float | None = None
    quick: bool = True

    @property
    def label(self) -> str:
        """As `show` names it."""
        if self.case == "load":
            return f"{LOAD:.0%} load, {self.tokens} tokens"
        if self.tokens == self.victim_tokens:
            return f"beside a backlogged task, {self.tokens} tokens"
        return f"{self.victim_tokens} tokens beside a backlogged task of {self.tokens}"


POINTS = (
    Point("beside", 16, 16, 0.6),
    Point("beside", 64, 64, 0.3),
    Point("beside", 64, 16, quick=False),
    Point("load", 16, 16),
    Point("load", 64, 64, quick=False),
)


@dataclass
class Bench:
    """Servers, load generator, and the texts/s of full batches by case and length."""

    arms: dict[str, Arm]
    generator: Generator
    seconds: float
    texts: dict[int, list[str]]
    capacity: dict[tuple[str, int], float] = field(default_factory=dict)

    def calibrate(self) -> None:
        """Saturate the arm of full batches."""
        for tokens, texts in self.texts.items():
            for case, tasks in {"beside": (AGGRESSOR,), "load": LORA}.items():
                plan = Plan(self.arms["1"].url, [Stream(tasks, texts, CLIENTS)], self.seconds, WARMUP, usage=True)
                self.capacity[case, tokens] = self.generator.run(plan).per_second

    def measure(self, point: Point, arm: Arm, number: int) -> Outcome:
        """A round of a point."""
        longer = 2 if point.tokens > min(self.texts) else 1
        seconds = longer * self.seconds

        def arriving(task: str, tokens: int, rate: float, seed: int) -> Stream:
            return Stream([task], self.texts[tokens], times=poisson(rate, seconds + WARMUP, seed))

        if point.case == "load":
            rate = LOAD * self.capacity[point.case, point.tokens] / len(LORA)
            streams = [arriving(task, point.tokens, rate, 10 * number + seed) for seed, task in enumerate(LORA)]
        else:
            rate = self.capacity[point.case, point.victim_tokens] / 4
            victim = arriving(VICTIM, point.victim_tokens, rate, 100 + number)
            streams = [victim, Stream([AGGRESSOR], self.texts[point.tokens], CLIENTS)]
        return self.generator.run(Plan(arm.url, streams, seconds, WARMUP, usage=True))

    def busy(self, point: Point, outcome: Outcome) -> float:
        """Seconds that full batches would take for what was answered in a second."""
        rates = {name: tally.per_second for name, tally in outcome.tasks.items()}
        return sum(
            rate / self.capacity[point.case, point.victim_tokens if name == VICTIM else point.tokens]
            for name, rate in rates.items()
        )


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row per point."""
    rounds, seconds = (2, 4.0) if quick else (5, 4.0)
    texts = {tokens: texts_of_length(tokens, 256) for tokens in (16, 64)}
    with contextlib.ExitStack() as stack:
        tasks = [*stack.enter_context(lora_tasks(len(LORA))), Task(VICTIM), Task(AGGRESSOR)]
        arms = {part: stack.enter_context(shared(tasks, name=part, batch_efficiency=part)) for part in PARTS}
        bench = Bench(arms, stack.enter_context(Generator(subject().apart.generator)), seconds, texts)
        bench.calibrate()
        return [_row(bench, point, rounds) for point in POINTS if point.quick or not quick]


def _row(bench: Bench, point: Point, rounds: int) -> dict[str, Any]:
    def measure(arm: Arm) -> Callable[[int], Outcome]:
        return lambda number: bench.measure(point, arm, number)

    seen = interleave({part: measure(arm) for part, arm in bench.arms.items()}, rounds)
    own = {part: [each.tasks[VICTIM] if point.case == "beside" else each for each in seen[part]] for part in PARTS}
    figures = ("mean_ms", "p99_ms")
    values = {
        part: {name: [getattr(each, name) for each in own[part]] for name in figures}
        | {"busy": [bench.busy(point, each) for each in seen[part]]}
        for part in PARTS
    }
    full, cut = (values[part] for part in PARTS)
    return {
        "case": point.case,
        "point": point.label,
        "at_most": point.at_most,
        "capacity": bench.capacity[point.case, point.tokens],
        "arms": {
            part: {name: spread(each) for name, each in values[part].items()}
            | {
                "batch_items": statistics.median(each.batch_items for each in seen[part]),
                "failures": sum(each.failures for each in seen[part]),
            }
            for part in PARTS
        },
        "mean_ratio": ratio(cut["mean_ms"], full["mean_ms"]),
        "p99_ratio": ratio(cut["p99_ms"], full["p99_ms"]),
        "busy_ratio": ratio(cut["busy"], full["busy"]),
        "rounds": rounds,
        "cores": str(subject().apart),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Two lines per point: the ratios, and what they are of."""
    for row in rows:
        if row["case"] == "load":
            mean = row["mean_ratio"]
            print(
                f"{row['point']}: mean latency {text(mean, '.2f')} of that with full batches "
                f"({against(round(mean['median'], 2), 1.0, at_most=True)}), p99 {text(row['p99_ratio'], '.2f')}"
            )
        else:
            p99, busy = row["p99_ratio"], row["busy_ratio"]
            aim = f" ({against(p99['median'], row['at_most'], at_most=True)})" if row["at_most"] else ""
            print(
                f"{row['point']}: the victim's p99 {text(p99, '.2f')} of that with full batches{aim}, mean "
                f"{text(row['mean_ratio'], '.2f')}; throughput {text(busy)} ({against(busy['median'], OF_THROUGHPUT)})"
            )
        arms = "; ".join(
            f"batch_efficiency {part}: mean {arm['mean_ms']['median']:.0f} ms, p99 {arm['p99_ms']['median']:.0f} ms, "
            f"batches of {arm['batch_items']:.0f}, {arm['failures']} failed"
            for part, arm in row["arms"].items()
        )
        print(f"    {arms}")


if __name__ == "__main__":
    show(run())
