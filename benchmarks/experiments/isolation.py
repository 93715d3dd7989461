"""Isolation: a victim's latency beside an aggressor on the same backbone.

Both have the same weight, and the victim uses half of its share.

* rate: 64 tokens, the aggressor at 0 to 20 times its share (half the capacity), Poisson; its queue holds 64.
* length: a victim of 16 tokens, the aggressor backlogged with texts of 16 to 512 tokens.
* adapter: both 16 tokens, the aggressor backlogged with LoRA of rank 64 on every linear layer.
* slo: as length with 16 tokens, and the victim's requests carry an SLO of one and a half full batches.

Target: the victim's p99 is at most its p99 alone plus two full batches, the one that is running when its request
arrives and the one that the request runs in. A full batch is one of the aggressor's, timed with the aggressor alone.
With an SLO: at least 99% within it. The victim's throughput must stay; it is taken over all rounds together, because
one batch more or less is much of what the victim sends in a round. fifo and per-task (a process each, same core) for
comparison.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.arms import Arm, Task, per_task, shared
from benchmarks.harness.compare import Spread, against, interleave, pace, spread, text
from benchmarks.harness.drawing import COLOURS, picture
from benchmarks.harness.repositories import texts_of_length, write_adapters
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Outcome, Plan, Stream, Tally
from benchmarks.load.arrivals import poisson

CLIENTS = 64
QUEUE = 64
SLO_BATCHES = 1.5
ALL = ("bfq", "fifo", "per-task")


@dataclass(frozen=True, slots=True)
class Point:
    """What the aggressor does: it sends `times` its share (None: it is backlogged) in texts of `tokens`."""

    sweep: str
    tokens: int
    victim_tokens: int = 16
    times: float | None = None
    aggressor: str = "aggressor"
    slo: bool = False
    arms: tuple[str, ...] = ("bfq",)
    quick: bool = False
    longer: float = 1.0  # factor of a round's length; larger where a round would hold no more than two full batches

    @property
    def label(self) -> str:
        """As `show` and `draw` name it."""
        if self.times is not None:
            return f"{self.times:g} times its share"
        return {"length": f"{self.tokens} tokens", "adapter": "rank 64 everywhere"}.get(self.sweep, "backlogged")


POINTS = (
    Point("rate", 64, 64, 5.0, longer=2.0),
    Point("rate", 64, 64, 20.0, longer=2.0),
    Point("length", 16, arms=ALL, quick=True),
    Point("length", 64),
    Point("length", 512),
    Point("adapter", 16, aggressor="slow", arms=ALL),
    Point("slo", 16, slo=True, arms=("bfq", "fifo"), quick=True),
)


@dataclass
class Bench:
    """Servers and load generator; capacity by length, and the time of a full batch by aggressor and length."""

    arms: dict[str, Arm]
    generator: Generator
    seconds: float
    warmup: float
    texts: dict[int, list[str]] = field(default_factory=dict)
    capacity: dict[int, float] = field(default_factory=dict)  # texts/s
    full: dict[tuple[str, int], float] = field(default_factory=dict)  # seconds

    def calibrate(self, points: list[Point]) -> None:
        """Measure rate and batch time of the aggressors alone, saturated."""
        wanted = {(point.aggressor, point.tokens) for point in points}
        wanted |= {("aggressor", point.victim_tokens) for point in points}
        for name, tokens in sorted(wanted):
            self.texts.setdefault(tokens, texts_of_length(tokens, 512))
            stream = Stream([name], self.texts[tokens], CLIENTS)
            plan = Plan(self.arms["bfq"].url, [stream], self.seconds, self.warmup, usage=True)
            outcomes = [self.generator.run(plan) for _ in range(3)]
            self.full[name, tokens] = statistics.median(each.batch_items / each.per_second for each in outcomes)
            if name == "aggressor":
                self.capacity[tokens] = statistics.median(each.per_second for each in outcomes)

    def alone(self, point: Point, number: int) -> Tally:
        """Run the victim alone."""
        return self._run(self.arms["bfq"], point, [self._victim(point, number)])

    def measure(self, point: Point, arm: Arm, number: int) -> Tally:
        """Run the victim beside the aggressor."""
        return self._run(arm, point, [self._victim(point, number), self._aggressor(point, number)])

    def _run(self, arm: Arm, point: Point, streams: list[Stream]) -> Tally:
        plan = Plan(arm.url, streams, self.seconds * point.longer, self._warmup(point))
        outcome: Outcome = self.generator.run(plan)
        return outcome.tasks["victim"]

    def _warmup(self, point: Point) -> float:
        """Seconds until the rate is steady: two full batches, four where an open loop has to fill the queue first."""
        batches = 2 if point.times is None else 4
        return max(self.warmup, batches * self.full[point.aggressor, point.tokens])

    def _length(self, point: Point) -> float:
        return self._warmup(point) + self.seconds * point.longer

    def _victim(self, point: Point, number: int) -> Stream:
        rate = self.capacity[point.victim_tokens] / 4
        slo_ms = SLO_BATCHES * self.full[point.aggressor, point.tokens] * 1e3 if point.slo else 0.0
        times = poisson(rate, self._length(point), 100 + number)  # the same beside every aggressor
        texts = self.texts[point.victim_tokens][::2]  # the aggressor's are others: equal ones would share rows
        return Stream(["victim"], texts, times=times, slo_ms=slo_ms, ask_slo=point.slo)

    def _aggressor(self, point: Point, number: int) -> Stream:
        texts = self.texts[point.tokens][1::2]
        if point.times is None:
            return Stream([point.aggressor], texts, CLIENTS)
        rate = point.times * self.capacity[point.tokens] / 2
        return Stream([point.aggressor], texts, times=poisson(rate, self._length(point), 200 + number))


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row per point."""
    rounds, seconds, warmup = pace(quick=quick)
    points = [point for point in POINTS if point.quick or not quick]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (slow,) = write_adapters(folder, 1, ranks=(64,), targets=subject().linear)
        tasks = [Task("victim"), Task("aggressor", max_queue=QUEUE), Task("slow", adapter=slow, max_queue=QUEUE)]
        arms = {name: stack.enter_context(shared(tasks, scheduler=name)) for name in ("bfq", "fifo")}
        arms["per-task"] = stack.enter_context(per_task(tasks))
        bench = Bench(arms, stack.enter_context(Generator(subject().apart.generator)), seconds, warmup)
        bench.calibrate(points)
        rows = []
        for victim_tokens in sorted({point.victim_tokens for point in points}, reverse=True):
            rows += _rows(bench, [point for point in points if point.victim_tokens == victim_tokens], rounds)
        return rows


def _rows(bench: Bench, points: list[Point], rounds: int) -> list[dict[str, Any]]:
    """Rows of points with the same victim: in each round it runs alone once, then beside each aggressor."""

    def measure(point: Point, name: str) -> Any:
        return lambda number: bench.measure(point, bench.arms[name], number)

    turns: dict[str, Any] = {"alone": lambda number: bench.alone(points[0], number)}
    turns |= {f"{point} {name}": measure(point, name) for point in points for name in point.arms}
    seen = interleave(turns, rounds)
    return [
        _row(bench, point, {"alone": seen["alone"]} | {name: seen[f"{point} {name}"] for name in point.arms})
        for point in points
    ]


def _row(bench: Bench, point: Point, seen: dict[str, list[Tally]]) -> dict[str, Any]:
    p99 = {name: spread([each.p99_ms for each in results]) for name, results in seen.items()}
    full_ms = bench.full[point.aggressor, point.tokens] * 1e3
    rates = {name: [each.per_second for each in results] for name, results in seen.items()}
    return {
        "sweep": point.sweep,
        "point": point.label,
        "p99_ms": p99,
        "full_batch_ms": full_ms,
        "allowed_ms": p99["alone"]["median"] + 2 * full_ms,
        "kept_rate": {name: math.fsum(rates[name]) / math.fsum(rates["alone"]) for name in point.arms},
        "failures": {name: sum(each.failures for each in results) for name, results in seen.items()},
        "slo_ms": SLO_BATCHES * full_ms if point.slo else None,
        "within_slo": {
            name: statistics.median(each.within_slo / each.offered for each in results)
            for name, results in seen.items()
            if name != "alone"
        },
        "rounds": len(seen["alone"]),
        "cores": str(subject().apart),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Two lines per point."""
    for row in rows:
        p99: dict[str, Spread] = row["p99_ms"]
        if row["slo_ms"]:
            shares = ", ".join(f"{name} {share:.3f}" for name, share in row["within_slo"].items() if name != "bfq")
            print(
                f"slo: {row['within_slo']['bfq']:.3f} of the victim's requests within its {row['slo_ms']:.0f} ms "
                f"({against(row['within_slo']['bfq'], 0.99)}; {shares})"
            )
            continue
        others = ", ".join(
            f"{name} {text(value, '.0f')}" for name, value in p99.items() if name not in ("bfq", "alone")
        )
        print(
            f"{row['sweep']}, {row['point']}: the victim's p99 {text(p99['bfq'], '.0f')} ms "
            f"({against(p99['bfq']['median'], round(row['allowed_ms']), at_most=True)}: alone "
            f"{p99['alone']['median']:.0f} + 2 full batches of {row['full_batch_ms']:.0f})"
            f"{'; ' if others else ''}{others}"
        )
        kept = ", ".join(f"{name} {value:.3f}" for name, value in row["kept_rate"].items())
        print(f"    its throughput against alone: {kept}; {row['failures']['bfq']} of its requests failed")


def draw(rows: list[dict[str, Any]]) -> None:
    """p99 by point, a panel per sweep."""
    sweeps = [name for name in ("rate", "length", "adapter") if any(row["sweep"] == name for row in rows)]

    def panels(every: Any) -> None:
        for axes, sweep in zip(every if len(sweeps) > 1 else [every], sweeps, strict=True):
            own = [row for row in rows if row["sweep"] == sweep]
            places = range(len(own))
            for name in ALL:
                points = [(at, row["p99_ms"][name]["median"]) for at, row in enumerate(own) if name in row["p99_ms"]]
                axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[name], label=name)
            axes.plot(places, [row["p99_ms"]["alone"]["median"] for row in own], "k:", label="alone")
            axes.plot(places, [row["allowed_ms"] for row in own], "--", color="#555555", label="allowed")
            axes.set_xticks(places, [row["point"].replace(" ", "\n", 1) for row in own], fontsize=7)
            axes.set_yscale("log")
            axes.set_title(f"aggressor's {sweep}")
        axes.legend(fontsize=7)

    picture("isolation", panels, columns=len(sweeps), width=4.0)


if __name__ == "__main__":
    show(run())
