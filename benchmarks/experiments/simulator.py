"""A simulation of a backbone, checked against the server: the real scheduler on simulated time.

`fmplex_backend.scheduling.simulator` lets every batch take what a cost model says; the latency outside the backbone
(network, server, reply) is added as a constant. Both are fitted to batches timed on the server at several batch sizes,
before the loads that they are checked on. The same arrivals then go to the server and
to the simulation, which should predict throughput and p99 within 15%. Above 100% load the queue grows as long as the
run lasts, by a tenth of the capacity at 110%: an error of 3% in the capacity is one of 30% in that p99. What two cores
cannot show follows, marked as simulated: a thousand tasks, the rate of eight GPUs, heavy-tailed lengths; and latencies
by `batch_efficiency`, of four tasks from 30% to 100% load and of a victim beside a task that floods the backbone.
Everything before that has batches of up to 32 rows (`batch_efficiency` 1).
"""

from __future__ import annotations

import contextlib
import random
import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.arms import Arm, Task, shared
from benchmarks.harness.compare import against
from benchmarks.harness.drawing import COLOURS, picture
from benchmarks.harness.repositories import texts_of_length
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Plan, Stream
from benchmarks.load.arrivals import poisson
from benchmarks.load.record import percentile_ms
from fmplex_backend.families.passes import plan_passes
from fmplex_backend.scheduling import CostModel
from fmplex_backend.scheduling.simulator import Arrival, Served, simulate
from fmplex_backend.types import PassShape, Work

BMAX = 32
WITHIN = 0.15
FITTED = (1, 2, 4, 8, 16, 64)  # clients
WEIGHTS = (3.0, 1.0)
EFFICIENCIES = (1.0, 0.95, 0.9)
LOADS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
VICTIM, FLOOD = 0.25, 1.3  # of the capacity of full batches


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a batch costs on this server, and the seconds of a request's latency outside the backbone."""

    cost: CostModel
    outside_s: float


def fit(arm: Arm, generator: Generator, texts: dict[int, list[str]], seconds: float) -> Fitted:
    """Time batches of several sizes and lengths."""
    profile: list[tuple[PassShape, float]] = []
    outside: list[float] = []
    for tokens, own in texts.items():
        for clients in FITTED:
            plan = Plan(arm.url, [Stream(["task0"], own, clients)], seconds, 0.5, usage=True)
            outcome = generator.run(plan)
            if clients == 1:
                outside.append(outcome.p50_ms / 1e3 - 1e-3 * outcome.compute_ms["1"])
                profile.append((PassShape(tokens, tokens, 0), 1e-3 * outcome.compute_ms["1"]))
            else:  # from batch to batch, the time between them included
                rows = outcome.batch_items
                profile.append((PassShape(round(rows * tokens), tokens, 0), rows / outcome.per_second))
    cost = CostModel()
    cost.seed(profile)
    return Fitted(cost, statistics.median(outside))


def check(
    arm: Arm, generator: Generator, fitted: Fitted, load: float, texts: dict[int, list[str]], seconds: float
) -> dict[str, Any]:
    """The same arrivals to the server and to the simulation; the first second is the warm-up."""
    tokens = min(texts)
    rate = load * BMAX / fitted.cost.batch(Work(BMAX, BMAX * tokens, BMAX * tokens**2), 0) / len(WEIGHTS)
    times = [poisson(rate, seconds + 1, seed) for seed in range(len(WEIGHTS))]
    streams = [
        Stream([f"task{task}"], texts[tokens][task :: len(WEIGHTS)], times=own)  # other texts: equal ones share rows
        for task, own in enumerate(times)
    ]
    outcome = generator.run(Plan(arm.url, streams, seconds))
    arrivals = [Arrival(time, task, tokens) for task, own in enumerate(times) for time in own]
    served = simulate(arrivals, WEIGHTS, fitted.cost, max_items=BMAX, plan_passes=plan_passes)
    latencies = [each.finish - each.arrival.time + fitted.outside_s for each in served if each.arrival.time >= 1]
    p99_ms = percentile_ms(latencies, 99)
    per_second = sum(1 <= each.finish + fitted.outside_s < seconds + 1 for each in served) / seconds
    return {
        "point": f"{load:.0%} load, {tokens} tokens",
        "server": {"per_second": outcome.per_second, "p99_ms": outcome.p99_ms, "mean_ms": outcome.mean_ms},
        "simulated": {"per_second": per_second, "p99_ms": p99_ms},
        "rate_ratio": per_second / outcome.per_second,
        "p99_ratio": p99_ms / outcome.p99_ms,
    }


@dataclass(frozen=True, slots=True)
class Scene:
    """A load that this machine cannot run."""

    name: str
    load: float
    tasks: int = 1000
    backbones: int = 1
    faster: float = 1.0  # than the fitted backbone
    heavy: bool = False  # lengths of a Pareto distribution, 8 to 512 tokens; else all of 16
    hog: float = 0.0  # share of all requests that task 0 sends

    def cost(self, fitted: CostModel) -> CostModel:
        """The fitted cost model, faster."""
        return CostModel(*(each / self.faster for each in (fitted.fixed, fitted.per_token, fitted.per_area)))

    def arrivals(self, cost: CostModel, seconds: float) -> list[Arrival]:
        """Poisson arrivals at `load` of what the backbones serve together, each of a random task."""
        rng = random.Random(0)
        lengths = [min(512, round(rng.paretovariate(1.2) * 8)) if self.heavy else 16 for _ in range(4096)]
        mean = round(BMAX * statistics.fmean(lengths)), round(BMAX * statistics.fmean(n * n for n in lengths))
        full = BMAX / cost.batch(Work(BMAX, *mean), 0)
        times = poisson(self.load * full * self.backbones, seconds, seed=7)
        return [
            Arrival(time, 0 if rng.random() < self.hog else rng.randrange(1, self.tasks), rng.choice(lengths))
            for time in times
        ]

    def serve(self, arrivals: list[Arrival], cost: CostModel, policy: str) -> list[Served]:
        """Tasks of equal weights."""
        weights = [1.0] * self.tasks
        return simulate(
            arrivals,
            weights,
            cost,
            policy=policy,
            backbones=self.backbones,
            max_items=BMAX,
            plan_passes=plan_passes,
        )


SCENES = (
    Scene("1,000 tasks, 90% load", 0.9),
    Scene("1,000 tasks, 130% load, half of it one task's", 1.3, hog=0.5),
    Scene("1,000 tasks, heavy-tailed lengths, 80% load", 0.8, heavy=True),
    Scene("1,000 tasks, heavy-tailed lengths, 120% load, half of it one task's", 1.2, heavy=True, hog=0.5),
    Scene("8 backbones 50 times as fast, 1,000 tasks, 90% load", 0.9, backbones=8, faster=50),
    Scene("8 backbones 50 times as fast, 1,000 tasks, 110% load, a tenth of it one task's", 1.1, 1000, 8, 50, hog=0.1),
)


def beyond(fitted: CostModel, *, quick: bool) -> list[dict[str, Any]]:
    """Every scene under bfq and fifo; where one task floods the rest, latencies are the others'."""
    rows: list[dict[str, Any]] = []
    for scene in SCENES:
        cost, seconds = scene.cost(fitted), (2.0 if quick else 20.0) / (scene.backbones if scene.faster > 1 else 1)
        arrivals = scene.arrivals(cost, seconds)
        for policy in ("bfq", "fifo"):
            served = scene.serve(arrivals, cost, policy)
            latencies = [each.finish - each.arrival.time for each in served if each.arrival.task or not scene.hog]
            figures = {f"p{n}_ms": percentile_ms(latencies, n) for n in (50, 99)}
            per_second = sum(each.finish < seconds for each in served) / seconds
            rows.append({"point": scene.name, "policy": policy, "per_second": per_second} | figures)
    return rows


def swept(fitted: CostModel, *, quick: bool) -> list[dict[str, Any]]:
    """Every value of `batch_efficiency` by load, for four equal tasks, and for a victim; texts of one length."""
    rows: list[dict[str, Any]] = []
    for tokens in (16, 64):
        full = BMAX / fitted.batch(Work(BMAX, BMAX * tokens, BMAX * tokens**2), 0)
        seconds = (1000 if quick else 10000) / full
        cases = {f"{load:.0%} load": [load / 4] * 4 for load in LOADS} | {"beside a flood": [VICTIM, FLOOD]}
        for case, loads in cases.items():
            arrivals = [
                Arrival(time, task, tokens)
                for task, load in enumerate(loads)
                for time in poisson(load * full, seconds, seed=task)
            ]
            for part in EFFICIENCIES:
                served = simulate(
                    arrivals, [1.0] * len(loads), fitted, max_items=BMAX, efficiency=part, plan_passes=plan_passes
                )
                seen = [each for each in served if len(loads) > 2 or not each.arrival.task]
                latencies = [each.finish - each.arrival.time for each in seen]
                figures = {"mean_ms": 1e3 * statistics.fmean(latencies), "p99_ms": percentile_ms(latencies, 99)}
                of_full = len(served) / max(each.finish for each in served) / full
                rows.append({"tokens": tokens, "point": case, "part": part, "of_full": of_full} | figures)
    return rows


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Fit, check against the server, then the scenes."""
    seconds = 3.0 if quick else 12.0
    texts = {tokens: texts_of_length(tokens, 256 * len(WEIGHTS)) for tokens in ((16,) if quick else (16, 64))}
    tasks = [Task(f"task{number}", weight) for number, weight in enumerate(WEIGHTS)]
    with contextlib.ExitStack() as stack:
        arm = stack.enter_context(shared(tasks, batch_efficiency="1"))
        generator = stack.enter_context(Generator(subject().apart.generator))
        fitted = fit(arm, generator, texts, 1.0 if quick else 3.0)
        loads = (0.7,) if quick else (0.4, 0.7, 0.9, 1.1)
        checks = [check(arm, generator, fitted, load, texts, seconds) for load in loads]
    cost = fitted.cost
    shown = {"fixed_ms": cost.fixed * 1e3, "per_token_us": cost.per_token * 1e6, "way_ms": fitted.outside_s * 1e3}
    scenes = {"beyond": beyond(cost, quick=quick), "swept": swept(cost, quick=quick)}
    return [{"fitted": shown, "within": WITHIN, "checks": checks} | scenes]


def show(rows: list[dict[str, Any]]) -> None:
    """The fitted figures, the checks, the scenes."""
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
        for tokens, point in dict.fromkeys((each["tokens"], each["point"]) for each in row.get("swept", ())):
            own = [each for each in row.get("swept", ()) if (each["tokens"], each["point"]) == (tokens, point)]
            figures = "; ".join(
                f"{each['part']:g}: {each['mean_ms']:.0f} / {each['p99_ms']:.0f} ms, {each['of_full']:.3f}"
                for each in own
            )
            print(f"SIMULATED {tokens} tokens, {point}, mean / p99 and throughput by batch_efficiency: {figures}")


def draw(rows: list[dict[str, Any]]) -> None:
    """The server's p99 and the simulated one, by load."""

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
