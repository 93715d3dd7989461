"""Fairness: how one backbone is divided among tasks by weight, and what fairness costs in throughput.

A case is a set of tasks that run together, backlogged (64 clients each, closed loop) or at a given rate (Poisson, a
share of the capacity). The score is 1.0 where every task reaches 95% of its offered load, else min(r)/max(r) with
r = throughput / weighted max-min share, at most 1. It is taken from the clients' counts of all rounds together (a round
may hold no more than 20 texts of a task, so that one more is 5%); the scores of single rounds stand in brackets. A text
counts as the time it takes when texts of its length run alone. Jain's index is over the backlogged tasks' service
divided by weight, by the backbone's account. bfq, fifo (batched, in order of arrival) and stfq (fair, unbatched) take
turns. bfq can gain no more over stfq than the bare backbone gains from batches of 32, which is measured here too. So
that the order alone differs, batches grow to 32 rows as fifo's do (`batch_efficiency` 1; shorter ones: `efficiency`).
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.harness.arms import Arm, Task, shared
from benchmarks.harness.bare import Bare
from benchmarks.harness.compare import Spread, against, interleave, pace, ratio, spread, text
from benchmarks.harness.drawing import COLOURS, picture, target_line
from benchmarks.harness.repositories import texts_of_length
from benchmarks.harness.score import fairness, jain
from benchmarks.harness.serving import service_seconds
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Outcome, Plan, Stream
from benchmarks.load.arrivals import poisson

CLIENTS = 64
ACCOUNT_S = 4.0  # seconds between two readings of the backbone's account
WEIGHTS = (1, 1, 1, 1, 1, 1, 1, 1, 2, 3, 4, 8)
SCORE, OF_FIFO = 0.99, 0.97
OF_STFQ = {16: 2.5, 8: 4.0}


@dataclass(frozen=True, slots=True)
class Member:
    """A task of a case: backlogged, or with `load` at that share of the capacity (Poisson)."""

    weight: int = 1
    tokens: int = 16
    load: float | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """Tasks that run together."""

    name: str
    members: tuple[Member, ...]
    arms: tuple[str, ...] = ("bfq", "fifo")
    quick: bool = True  # part of a quick run
    clients: int = CLIENTS  # of each backlogged task; so few that each has an answer by the end of the warm-up
    longer: float = 1.0  # factor of a round's length; larger where one batch is much of what a task gets in a round

    def tasks(self) -> list[str]:
        """The names of tasks with the members' weights."""
        free = {weight: [n for n, each in enumerate(WEIGHTS) if each == weight] for weight in set(WEIGHTS)}
        return [f"task{free[member.weight].pop(0)}" for member in self.members]


ALL = ("bfq", "fifo", "stfq")
CASES = (
    Case("3:1, 16 tokens", (Member(3), Member()), ALL),
    Case("3:1, 8 tokens", (Member(3, 8), Member(1, 8)), ALL, quick=False),
    Case("8:4:2:1, 16 tokens", (Member(8), Member(4), Member(2), Member(1)), quick=False),
    Case("eight tasks, 16 tokens", (Member(),) * 8, quick=False, clients=16),
    Case("1:1, 8 and 64 tokens", (Member(1, 8), Member(1, 64)), longer=2.0),
    Case("3:1, 64 and 16 tokens", (Member(3, 64), Member(1, 16)), quick=False, longer=2.0),
    Case("3:1:1, the 3 at 20% load", (Member(3, 16, 0.2), Member(), Member()), quick=False, longer=2.0),
    Case("3:1, each at 80% load", (Member(3, 16, 0.8), Member(1, 16, 0.8)), quick=False),
)


@dataclass(frozen=True, slots=True)
class Round:
    """What the tasks of a case got and demanded, in seconds of service per second."""

    outcome: Outcome
    got: list[float]
    demands: list[float]


@dataclass
class Bench:
    """Servers, load generator and texts; `costs` are the seconds a text takes where its length runs alone."""

    arms: dict[str, Arm]
    generator: Generator
    seconds: float
    warmup: float
    texts: dict[int, list[str]] = field(default_factory=dict)
    costs: dict[int, float] = field(default_factory=dict)
    gains: dict[int, Spread] = field(default_factory=dict)  # of the bare backbone from batches of 32, by length

    def calibrate(self, lengths: set[int]) -> None:
        """Measure what a text of each length takes, saturated."""
        for tokens in sorted(lengths):
            self.texts[tokens] = texts_of_length(tokens, 512 * len(WEIGHTS))
            plan = Plan(
                self.arms["bfq"].url, [Stream(["task0"], self.texts[tokens], CLIENTS)], self.seconds, self.warmup
            )
            self.costs[tokens] = 1 / self.generator.run(plan).per_second

    def gain(self, tokens: int, rounds: int) -> None:
        """Measure the bare backbone's rate with batches of 32 over that with batches of 1."""
        core = subject().apart.models[0]
        with Bare(self.texts[tokens], 32, core) as many, Bare(self.texts[tokens], 1, core) as one:
            seen = interleave({"many": lambda _: many.per_second(1.5), "one": lambda _: one.per_second(1.5)}, rounds)
        self.gains[tokens] = ratio(seen["many"], seen["one"])

    def measure(self, case: Case, arm: Arm, number: int) -> Round:
        """Run one round on one arm."""
        streams = [self._stream(case, name, member, number) for name, member in self._named(case)]
        plan = Plan(arm.url, streams, self.seconds * case.longer, self.warmup)
        outcome = self.generator.run(plan)
        return Round(outcome, self._got(case, outcome), self._demands(case, outcome))

    def account(self, case: Case) -> float | None:
        """Jain's index of the backlogged tasks' service / weight by the backbone's account; None for fewer than two."""
        if sum(member.load is None for member in case.members) < 2:
            return None
        server = self.arms["bfq"].server
        seen: list[dict[str, float]] = []

        def watch() -> None:
            for wait in (1.5, ACCOUNT_S):  # /metrics is up to a second old, and shows all tasks as of one moment
                time.sleep(wait)
                seen.append(service_seconds(server))

        streams = [self._stream(case, name, member, 0) for name, member in self._named(case)]
        self.generator.run(Plan(self.arms["bfq"].url, streams, ACCOUNT_S + 2, self.warmup), beside=watch)
        before, after = seen
        return jain([(after[name] - before[name]) / m.weight for name, m in self._named(case) if not m.load])

    def _named(self, case: Case) -> list[tuple[str, Member]]:
        return list(zip(case.tasks(), case.members, strict=True))

    def _stream(self, case: Case, name: str, member: Member, number: int) -> Stream:
        task = int(name.removeprefix("task"))
        texts = self.texts[member.tokens][task :: len(WEIGHTS)]  # its own: equal ones would share rows
        if member.load is None:
            return Stream([name], texts, case.clients)
        seed = 1000 * number + task
        return Stream([name], texts, times=poisson(self._rate(member), self.warmup + ACCOUNT_S + 2, seed))

    def _rate(self, member: Member) -> float:
        return (member.load or 0.0) / self.costs[member.tokens]

    def _got(self, case: Case, outcome: Outcome) -> list[float]:
        return [
            (outcome.tasks[name].per_second if name in outcome.tasks else 0.0) * self.costs[member.tokens]
            for name, member in self._named(case)
        ]

    def _demands(self, case: Case, outcome: Outcome) -> list[float]:
        seconds = self.seconds * case.longer
        return [
            math.inf if member.load is None else outcome.tasks[name].offered / seconds * self.costs[member.tokens]
            for name, member in self._named(case)
        ]


def score(case: Case, rounds: Sequence[Round]) -> float:
    """The fairness score of the means over some rounds."""
    got, demands = (
        [statistics.fmean(column) for column in zip(*table, strict=True)]
        for table in ([each.got for each in rounds], [each.demands for each in rounds])
    )
    return fairness(got, [member.weight for member in case.members], demands)


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row per case."""
    rounds, seconds, warmup = pace(quick=quick)
    cases = [replace(case, longer=1.0) for case in CASES if case.quick] if quick else list(CASES)
    tasks = [Task(f"task{number}", weight) for number, weight in enumerate(WEIGHTS)]
    with contextlib.ExitStack() as stack:
        arms = {name: stack.enter_context(shared(tasks, scheduler=name, batch_efficiency="1")) for name in ALL}
        bench = Bench(arms, stack.enter_context(Generator(subject().apart.generator)), seconds, warmup)
        bench.calibrate({member.tokens for case in cases for member in case.members})
        for tokens in OF_STFQ.keys() & bench.texts if not quick else ():
            bench.gain(tokens, min(rounds, 3))
        return [_row(bench, case, rounds, quick) for case in cases]


def _row(bench: Bench, case: Case, rounds: int, quick: bool) -> dict[str, Any]:
    def measure(name: str) -> Any:
        return lambda number: bench.measure(case, bench.arms[name], number)

    seen = interleave({name: measure(name) for name in case.arms}, rounds)
    work = {name: [math.fsum(each.got) for each in results] for name, results in seen.items()}
    tokens = case.members[0].tokens
    return {
        "case": case.name,
        "arms": {
            name: {
                "score": score(case, results),
                "of_rounds": spread([score(case, [each]) for each in results]),
                "per_second": spread([each.outcome.per_second for each in results]),
            }
            for name, results in seen.items()
        },
        "jain": None if quick else bench.account(case),
        "of_fifo": ratio(work["bfq"], work["fifo"]),
        "of_stfq": ratio(work["bfq"], work["stfq"]) if "stfq" in work else None,
        "gain": bench.gains.get(tokens),
        "targets": {"score": SCORE, "of_fifo": OF_FIFO, "of_stfq": OF_STFQ.get(tokens)},
        "failures": sum(each.outcome.failures for results in seen.values() for each in results),
        "ceiling": statistics.median(each.outcome.ceiling for results in seen.values() for each in results),
        "rounds": rounds,
        "cores": str(subject().apart),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A few lines per case."""
    for row in rows:
        arms, targets = row["arms"], row["targets"]
        bfq = arms["bfq"]
        others = ", ".join(f"{name} {arm['score']:.3f}" for name, arm in arms.items() if name != "bfq")
        print(
            f"{row['case']}: score {bfq['score']:.3f} (rounds {text(bfq['of_rounds'])}; "
            f"{against(bfq['score'], targets['score'])}; {others}), "
            f"Jain by the account {'-' if row['jain'] is None else format(row['jain'], '.4f')}"
        )
        print(
            f"    throughput {text(row['of_fifo'])} of fifo's ({against(row['of_fifo']['median'], targets['of_fifo'])})"
        )
        if row["of_stfq"]:
            wanted = against(row["of_stfq"]["median"], targets["of_stfq"])
            gain = f"; bare gains {text(row['gain'])} from batches of 32" if row["gain"] else ""
            print(f"    and {text(row['of_stfq'])} of stfq's ({wanted}){gain}")
        rates = ", ".join(f"{name} {arm['per_second']['median']:.0f}" for name, arm in arms.items())
        print(f"    texts/s: {rates}; the generator's own ceiling: {row['ceiling']:.0f}; {row['failures']:.0f} failed")


def draw(rows: list[dict[str, Any]]) -> None:
    """Scores by case and policy."""

    def bars(axes: Any) -> None:
        for place, name in enumerate(ALL):
            points = [(at, row["arms"][name]) for at, row in enumerate(rows) if name in row["arms"]]
            heights = [arm["score"] for _, arm in points]
            low = [max(0.0, arm["score"] - arm["of_rounds"]["low"]) for _, arm in points]
            high = [max(0.0, arm["of_rounds"]["high"] - arm["score"]) for _, arm in points]
            at = [at + 0.27 * (place - 1) for at, _ in points]
            axes.bar(at, heights, 0.25, yerr=[low, high], color=COLOURS[name], label=name)
        target_line(axes, SCORE, f"target {SCORE}")
        axes.set_xticks(range(len(rows)), [row["case"].replace(", ", "\n") for row in rows], fontsize=6)
        axes.set_ylabel("fairness score")
        axes.legend(ncols=4, fontsize=7, loc="lower left")

    picture("fairness", bars, width=9.0)


if __name__ == "__main__":
    show(run())
