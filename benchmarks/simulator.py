"""A simulation of a backbone, checked against the server: the real scheduler on simulated time.

`simulate` feeds arrivals to the scheduler of `fmplex_backend` and lets every batch take what the fitted cost model
says; nothing else is simulated but a constant for the way there and back. The cost model is fitted to batches timed on
the server at several batch sizes, before the loads that it is checked on. The same arrivals then go to the server and
to the simulation, which should predict throughput and p99 within 15%. Above 100% load the queue grows as long as the
run lasts, by a tenth of the capacity at 110%: an error of 3% in the capacity is one of 30% in that p99. What two cores
cannot show follows, marked as simulated: a thousand tasks, the rate of eight GPUs, heavy-tailed lengths.
"""

from __future__ import annotations

import contextlib
import copy
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.arms import Arm, Task, shared
from benchmarks.compare import against
from benchmarks.drawing import COLOURS, picture
from benchmarks.load import Generator, Plan, Stream
from benchmarks.load.arrivals import poisson
from benchmarks.load.record import percentile_ms
from benchmarks.repositories import texts_of_length
from benchmarks.subject import subject
from fmplex_backend.runtime.passes import plan_passes
from fmplex_backend.scheduling import POLICIES, CostModel, Scheduler
from fmplex_backend.types import PassShape, Reply, Request, Work
from fmplex_backend.vfm import Vfm

BMAX = 32
WITHIN = 0.15
FITTED = (1, 2, 4, 8, 16, 64)  # clients
WEIGHTS = (3.0, 1.0)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that comes to a task: seconds, which task, tokens."""

    time: float
    task: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Served:
    """What became of it."""

    arrival: Arrival
    finish: float


def simulate(
    arrivals: Sequence[Arrival], weights: Sequence[float], cost: CostModel, *, policy: str = "bfq", backbones: int = 1
) -> list[Served]:
    """Serve all arrivals (in order of time); each backbone has its own queues, tasks are dealt out in turn."""
    served: list[Served] = []
    for number in range(backbones):
        own = [arrival for arrival in arrivals if arrival.task % backbones == number]
        served += _one(own, weights, cost, policy)
    return served


def _one(arrivals: Sequence[Arrival], weights: Sequence[float], cost: CostModel, policy: str) -> Iterator[Served]:
    learning = copy.deepcopy(cost)  # the scheduler's own estimates go on being fitted, as on the server
    scheduler = POLICIES[policy](learning, max_items=BMAX)
    vfms = [Vfm(number, f"task{number}", weight=weight) for number, weight in enumerate(weights)]
    known: dict[Request, Arrival] = {}
    now, position = 0.0, 0
    while position < len(arrivals) or scheduler.queued:
        if not scheduler.queued:
            now = max(now, arrivals[position].time)
        while position < len(arrivals) and arrivals[position].time <= now:
            request = _request(vfms[arrivals[position].task], arrivals[position])
            known[request] = arrivals[position]
            scheduler.admit(request)
            position += 1
        batch = scheduler.choose(now)
        elapsed = _run(batch, cost, scheduler, learning)
        scheduler.settle(batch)
        now += elapsed
        for request in batch:
            yield Served(known.pop(request), now)


def _no_reply(request: Request, reply: Reply) -> None:
    """Nobody waits for it."""


def _request(vfm: Vfm, arrival: Arrival) -> Request:
    request = Request(vfm, {}, (), arrival.time, _no_reply)
    request.work = Work(1, arrival.tokens, arrival.tokens**2)
    return request


def _run(batch: Sequence[Request], cost: CostModel, scheduler: Scheduler, learning: CostModel) -> float:
    """A batch in passes, as the runtime cuts it; the seconds it takes."""
    lengths = [request.work.tokens for request in batch]
    total = 0.0
    for group in plan_passes(lengths, learning.predict):
        longest = max(lengths[position] for position in group)
        shape = PassShape(len(group) * longest, longest, 0)
        elapsed = cost.predict(shape)
        learning.observe(shape, len(group), elapsed)
        total += elapsed
    scheduler.measure([(request, request.work) for request in batch], total)
    return total


def fit(arm: Arm, generator: Generator, texts: dict[int, list[str]], seconds: float) -> tuple[CostModel, float]:
    """The cost of a batch on this server, and the seconds a request is under way besides."""
    profile: list[tuple[PassShape, float]] = []
    ways: list[float] = []
    for tokens, own in texts.items():
        for clients in FITTED:
            plan = Plan(arm.url, [Stream(["task0"], own, clients)], seconds, 0.5, usage=True)
            outcome = generator.run(plan)
            if clients == 1:
                ways.append(outcome.p50_ms / 1e3 - 1e-3 * outcome.compute_ms["1"])
                profile.append((PassShape(tokens, tokens, 0), 1e-3 * outcome.compute_ms["1"]))
            else:  # a whole cycle, the time between batches included
                rows = outcome.batch_items
                profile.append((PassShape(round(rows * tokens), tokens, 0), rows / outcome.per_second))
    cost = CostModel()
    cost.seed(profile)
    return cost, statistics.median(ways)


def check(
    arm: Arm,
    generator: Generator,
    cost: CostModel,
    way: float,
    load: float,
    texts: dict[int, list[str]],
    seconds: float,
) -> dict[str, Any]:
    """The same arrivals to both."""
    tokens = min(texts)
    rate = load * BMAX / cost.batch(Work(BMAX, BMAX * tokens, BMAX * tokens**2), 0) / len(WEIGHTS)
    times = [poisson(rate, seconds + 1, seed) for seed in range(len(WEIGHTS))]
    streams = [Stream([f"task{task}"], texts[tokens], times=own) for task, own in enumerate(times)]
    outcome = generator.run(Plan(arm.url, streams, seconds))
    arrivals = [Arrival(time, task, tokens) for task, own in enumerate(times) for time in own]
    served = simulate(sorted(arrivals, key=lambda arrival: arrival.time), WEIGHTS, cost)
    counted = [each for each in served if each.arrival.time >= 1]
    late = percentile_ms((each.finish - each.arrival.time + way for each in counted), 99)
    done = sum(1 <= each.finish + way < seconds + 1 for each in served) / seconds
    return {
        "point": f"{load:.0%} load, {tokens} tokens",
        "server": {"per_second": outcome.per_second, "p99_ms": outcome.p99_ms, "mean_ms": outcome.mean_ms},
        "simulated": {"per_second": done, "p99_ms": late},
        "rate_ratio": done / outcome.per_second,
        "p99_ratio": late / outcome.p99_ms,
    }


@dataclass(frozen=True, slots=True)
class Scene:
    """A load beyond this machine. `hog`: the part of all requests that task 0 sends."""

    name: str
    load: float
    tasks: int = 1000
    backbones: int = 1
    faster: float = 1.0  # a backbone against the fitted one
    heavy: bool = False  # Pareto lengths, 8 to 512 tokens
    hog: float = 0.0

    def cost(self, fitted: CostModel) -> CostModel:
        """Of its backbones."""
        return CostModel(*(each / self.faster for each in (fitted.fixed, fitted.per_token, fitted.per_area)))

    def arrivals(self, cost: CostModel, seconds: float) -> list[Arrival]:
        """Poisson, over its tasks."""
        rng = random.Random(0)
        lengths = [min(512, round(rng.paretovariate(1.2) * 8)) if self.heavy else 16 for _ in range(4096)]
        mean = round(BMAX * statistics.fmean(lengths)), round(BMAX * statistics.fmean(n * n for n in lengths))
        full = BMAX / cost.batch(Work(BMAX, *mean), 0)
        times = poisson(self.load * full * self.backbones, seconds, seed=7)
        return [
            Arrival(time, 0 if rng.random() < self.hog else rng.randrange(1, self.tasks), rng.choice(lengths))
            for time in times
        ]


SCENES = (
    Scene("1,000 tasks, 90% load", 0.9),
    Scene("1,000 tasks, 130% load, half of it one task's", 1.3, hog=0.5),
    Scene("1,000 tasks, heavy-tailed lengths, 80% load", 0.8, heavy=True),
    Scene("1,000 tasks, heavy-tailed lengths, 120% load, half of it one task's", 1.2, heavy=True, hog=0.5),
    Scene("8 backbones 50 times as fast, 1,000 tasks, 90% load", 0.9, backbones=8, faster=50),
    Scene("8 backbones 50 times as fast, 1,000 tasks, 110% load, a tenth of it one task's", 1.1, 1000, 8, 50, hog=0.1),
)


def beyond(fitted: CostModel, *, quick: bool) -> list[dict[str, Any]]:
    """What two cores cannot show."""
    rows: list[dict[str, Any]] = []
    for scene in SCENES:
        cost, seconds = scene.cost(fitted), (2.0 if quick else 20.0) / (scene.backbones if scene.faster > 1 else 1)
        arrivals = scene.arrivals(cost, seconds)
        for policy in ("bfq", "fifo"):
            served = simulate(arrivals, [1.0] * scene.tasks, cost, policy=policy, backbones=scene.backbones)
            late = [each.finish - each.arrival.time for each in served if each.arrival.task or not scene.hog]
            figures = {f"p{n}_ms": percentile_ms(late, n) for n in (50, 99)}
            done = sum(each.finish < seconds for each in served) / seconds
            rows.append({"point": scene.name, "policy": policy, "per_second": done} | figures)
    return rows


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Fit, check, go beyond."""
    seconds = 3.0 if quick else 12.0
    texts = {tokens: texts_of_length(tokens, 256) for tokens in ((16,) if quick else (16, 64))}
    tasks = [Task(f"task{number}", weight) for number, weight in enumerate(WEIGHTS)]
    with contextlib.ExitStack() as stack:
        arm = stack.enter_context(shared(tasks))
        generator = stack.enter_context(Generator(subject().apart.generator))
        cost, way = fit(arm, generator, texts, 1.0 if quick else 3.0)
        loads = (0.7,) if quick else (0.4, 0.7, 0.9, 1.1)
        rows = [check(arm, generator, cost, way, load, texts, seconds) for load in loads]
    fitted = {"fixed_ms": cost.fixed * 1e3, "per_token_us": cost.per_token * 1e6, "way_ms": way * 1e3}
    return [{"fitted": fitted, "within": WITHIN, "checks": rows, "beyond": beyond(cost, quick=quick)}]


def show(rows: list[dict[str, Any]]) -> None:
    """The checks, then the rest."""
    for row in rows:
        fitted = ", ".join(f"{name} {value:.2f}" for name, value in row["fitted"].items())
        print(f"fitted: {fitted}")
        for each in row["checks"]:
            verdicts = []
            for key, form in (("rate_ratio", "throughput"), ("p99_ratio", "p99")):
                off = abs(each[key] - 1)
                verdicts.append(
                    f"{form} {each[key]:.2f} of the server's (off by {off:.2f}, "
                    f"{against(off, row['within'], at_most=True)})"
                )
            print(f"{each['point']}: simulated {', '.join(verdicts)}; server p99 {each['server']['p99_ms']:.0f} ms")
        for each in row["beyond"]:
            print(
                f"SIMULATED {each['point']}, {each['policy']}: {each['per_second']:.0f} requests/s, p50 "
                f"{each['p50_ms']:.0f} ms, p99 {each['p99_ms']:.0f} ms (of the others, where one is named)"
            )


def draw(rows: list[dict[str, Any]]) -> None:
    """p99 by load, both."""

    def lines(axes: Any) -> None:
        checks = rows[0]["checks"]
        places = range(len(checks))
        axes.plot(places, [each["server"]["p99_ms"] for each in checks], "o-", color=COLOURS["bfq"], label="server")
        axes.plot(places, [each["simulated"]["p99_ms"] for each in checks], "x--", color="#222222", label="simulated")
        axes.set_xticks(places, [each["point"].split(",")[0] for each in checks], fontsize=7)
        axes.set_ylabel("p99, ms")
        axes.legend(fontsize=7)

    picture("simulator", lines)


if __name__ == "__main__":
    show(run())
