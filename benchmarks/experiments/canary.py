"""Canary and shadow: how exactly a canary's share is met, and what a shadow costs everybody else.

Two head-only tasks on one backbone. A canary of one of them is to answer 5% of 20,000 requests: that have ids which
count up, and that have none.

A shadow of the same task, a LoRA version that shares no rows with others, works on copies of its requests; rounds
without and with it in turn:

* loaded: both tasks at 90% of the highest rate, Poisson arrivals, open loop; rate and latency are those of the task
  that is not shadowed, and p99 of rounds without a shadow against each other says what noise is;
* light: the same at 30%, where there is time for copies;
* saturated: 64 clients over both tasks in a closed loop;
* alone: one client of the shadowed task, who leaves the backbone idle between its requests.

The backbone's process on one core, Triton and the clients on the other.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.arms import Arm, Task, shared
from benchmarks.harness.compare import against, interleave, ratio, spread, text
from benchmarks.harness.repositories import texts_of_length, write_adapters, write_version
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Outcome, Plan, Stream, closed
from benchmarks.load.arrivals import poisson
from fmplex import Client
from fmplex_backend.repository.rollout import Rollout
from fmplex_backend.status import CandidateStatus
from testing.servers import eventually

TRIED, OTHER = "tried", "other"
BACKBONE = "minilm"
SHARE, REQUESTS = 0.05, 20_000
LEAST, MOST = 0.048, 0.052
TOKENS, CLIENTS = 16, 64
LOADS = {"loaded": 0.9, "light": 0.3}  # of the highest rate
RATE_TARGET = 0.97  # of the rate without a shadow
PACES = {"loaded": (7, 4.0), "light": (3, 4.0), "saturated": (5, 2.0), "alone": (4, 1.0)}  # rounds, and seconds of each


class Bench:
    """A server whose task can be given a canary or a shadow."""

    def __init__(self, arm: Arm, generator: Generator) -> None:
        self.arm, self.generator = arm, generator
        self.models = Rollout(arm.server.repository)
        self.texts = texts_of_length(TOKENS, 512)

    def tried(self) -> CandidateStatus | None:
        """What the backbone tells of the version that is tried; None where there is none."""
        with Client(self.arm.url) as client:
            (task,) = client.status(BACKBONE, TRIED).tasks
        return task.candidates[0] if task.candidates else None

    @contextlib.contextmanager
    def shadowed(self) -> Iterator[None]:
        """While the other version is a shadow."""
        self.models.shadow(TRIED, 2)
        eventually(lambda: self.tried() is not None, "the shadow is served")
        yield
        self.models.stop(TRIED, "shadow")
        eventually(lambda: self.tried() is None, "the shadow is gone")
        time.sleep(0.5)


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row for each kind of ids, and one for each kind of load."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (adapter,) = write_adapters(folder, 1)
        arm = stack.enter_context(shared([Task(TRIED), Task(OTHER)]))
        generator = stack.enter_context(Generator(subject().apart.generator))
        bench = Bench(arm, generator)
        write_version(arm.server.repository, TRIED, 2, adapter=adapter)
        bench.models.rollback(TRIED, 1)
        rows = [_share(bench, ids, 2000 if quick else REQUESTS) for ids in ("request-", "")]
        return [*rows, *_shadow(bench, quick=quick)]


def _share(bench: Bench, ids: str, requests: int) -> dict[str, Any]:
    """What part of the requests a canary has answered."""
    bench.models.canary(TRIED, SHARE, 2)
    eventually(lambda: bench.tried() is not None, "the canary is served")
    answered, sent = 0, 0
    while sent < requests:
        stream = Stream([TRIED], bench.texts, CLIENTS, ids=f"{ids}{sent}-" if ids else "")
        outcome = bench.generator.run(Plan(bench.arm.url, [stream], seconds=1.0, warmup=0.0))
        if outcome.failures:
            raise RuntimeError(f"{outcome.failures} requests failed: {outcome.errors}")
        now = bench.tried()
        assert now is not None
        answered, sent = now.requests, now.requests + now.served_requests
    bench.models.rollback(TRIED)
    eventually(lambda: bench.tried() is None, "the canary is gone")
    return {"what": "canary", "ids": ids, "requests": sent, "share": answered / sent}


def _shadow(bench: Bench, *, quick: bool) -> list[dict[str, Any]]:
    url, texts = bench.arm.url, bench.texts
    paces = dict.fromkeys(PACES, (2, 1.0)) if quick else PACES
    seconds = {name: each for name, (_, each) in paces.items()}
    saturated = closed(url, [TRIED, OTHER], texts, clients=CLIENTS, seconds=seconds["saturated"])
    alone = closed(url, [TRIED], texts, clients=1, seconds=seconds["alone"])
    highest = statistics.median(bench.generator.run(saturated).per_second for _ in range(3))
    plans: dict[str, Callable[[int], Plan]] = {
        name: partial(_loaded, url, texts, load * highest, seconds[name]) for name, load in LOADS.items()
    }
    plans |= {
        "saturated": lambda round_: saturated,
        "alone": lambda round_: alone,
    }
    return [_compared(bench, name, plan, paces[name][0]) | {"highest": highest} for name, plan in plans.items()]


def _loaded(url: str, texts: list[str], rate: float, seconds: float, seed: int) -> Plan:
    """Both arms of a round get the same arrivals."""
    streams = [
        Stream([name], texts, times=poisson(rate / 2, seconds + 1, seed=10 * seed + number))
        for number, name in enumerate((TRIED, OTHER))
    ]
    return Plan(url, streams, seconds)


def _compared(bench: Bench, name: str, plan: Callable[[int], Plan], rounds: int) -> dict[str, Any]:
    copies: list[float] = []

    def with_shadow(round_: int) -> Outcome:
        with bench.shadowed():
            outcome = bench.generator.run(plan(round_))
            told = bench.tried()
        assert told is not None
        asked = told.requests + told.dropped + sum(told.failures.values())
        copies.append(told.requests / asked if asked else 0.0)
        return outcome

    arms = {
        "without": lambda round_: bench.generator.run(plan(round_)),
        "with": with_shadow,
        "again": lambda round_: bench.generator.run(plan(round_)),
    }
    seen = interleave(arms, rounds)
    if failures := sum(each.failures for outcomes in seen.values() for each in outcomes):
        raise RuntimeError(f"{failures} requests failed")
    task = TRIED if name == "alone" else OTHER
    told = {arm: [each.tasks[task] for each in outcomes] for arm, outcomes in seen.items()}
    rates = {arm: [each.per_second for each in tallies] for arm, tallies in told.items()}
    p99s = {arm: [each.p99_ms for each in tallies] for arm, tallies in told.items()}
    return {
        "what": name,
        "per_second": {arm: spread(each) for arm, each in rates.items()},
        "p99_ms": {arm: spread(each) for arm, each in p99s.items()},
        "rate_ratio": ratio(rates["with"], rates["without"]),
        "rate_noise": ratio(rates["again"], rates["without"]),
        "p99_ratio": ratio(p99s["with"], p99s["without"]),
        "p99_noise": ratio(p99s["again"], p99s["without"]),
        "copied": statistics.median(copies),
        "rounds": rounds,
        "cores": str(subject().apart),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A line per row."""
    for row in rows:
        if row["what"] == "canary":
            kind = "ids that count up" if row["ids"] else "no ids"
            met = "met" if LEAST <= row["share"] <= MOST else "MISSED"
            print(
                f"canary at {SHARE:.0%}, {row['requests']} requests with {kind}: {row['share']:.3%} "
                f"(target {LEAST:.1%} to {MOST:.1%}, {met})"
            )
            continue
        print(
            f"shadow, {row['what']}: rate {text(row['rate_ratio'])} of that without "
            f"({against(row['rate_ratio']['median'], RATE_TARGET)}; without against without "
            f"{text(row['rate_noise'])}); p99 {text(row['p99_ratio'], '.2f')} times "
            f"(without against without {text(row['p99_noise'], '.2f')}), {row['p99_ms']['with']['median']:.1f} and "
            f"{row['p99_ms']['without']['median']:.1f} ms; {row['copied']:.0%} of the requests copied; "
            f"highest rate {row['highest']:.0f}/s; {row['rounds']} rounds"
        )


if __name__ == "__main__":
    show(run())
