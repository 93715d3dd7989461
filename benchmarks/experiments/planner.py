"""Max-Share: how fast it plans, how many backbones it needs, and what a cluster sustains by it, simulated.

* speed: 1,000 tasks and 64 backbones, bound at random, and from nothing.
* random situations: backbones against an instance per task and against spreading, where these place every task; and, of
  up to ten tasks, against the fewest there can be, found by trying everything (no task split; the planner's with
  splitting beside it).
* SIMULATED: as many tasks as a cluster of four servers sustains, 95% of all requests within their SLO, at a low, a
  moderate and a high load by each task; placed by Max-Share and served by one backbone on each server with `bfq`, or an
  instance for each task, those of a server taking turns on its device. Then the latencies of both on one server, with
  as many tasks as its instances sustain. A pass takes what passes of the backbone took in this process, at the
  beginning; a server's memory holds eight instances. On a CPU a row takes about as long in a batch as alone, so that
  batches bring little there; on a GPU they bring more.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.compare import against
from benchmarks.harness.placement import colocated, least_backbones, random_situation
from benchmarks.harness.subject import subject
from benchmarks.load.arrivals import poisson
from benchmarks.load.record import percentile_ms
from fmplex_backend.families import family
from fmplex_backend.families.passes import plan_passes
from fmplex_backend.repository.config import load_backbone_config
from fmplex_backend.scheduling import CostModel
from fmplex_backend.scheduling.simulator import Arrival, Served, simulate
from fmplex_backend.types import Work
from fmplex_controller.planner.baselines import instance_per_task, spread
from fmplex_controller.planner.max_share import max_share
from fmplex_controller.planner.situation import Model, Plan, Server, Situation, Task

SECONDS, OF_EXACT = 1.0, 1.1
BMAX, SERVERS, HOLDS = 32, 4, 8  # rows of a batch; servers, and the instances that the memory of one holds
EXTENSION = 0.001  # memory of a task's own weights, of an instance's: a LoRA adapter and a head of MiniLM
LOADS = {"low": 0.02, "moderate": 0.1, "high": 0.3}  # of a task, of what full batches of a server serve
SLO, WITHIN = 10.0, 0.95  # times what one row takes alone; the part of the requests that must be within it
LENGTHS = (16, 32, 64)  # of rows, at random
MEAN_LENGTH = sum(LENGTHS) / len(LENGTHS)
PAPER = {"low": "6 times", "moderate": "8 to 12% more", "high": "8 to 12% more"}


def speed(*, quick: bool) -> dict[str, Any]:
    """Seconds of planning, by the wall clock."""
    took: dict[str, list[float]] = {"bound": [], "from nothing": []}
    for seed in range(2 if quick else 10):
        for kind, own in took.items():
            count = 64 if kind == "bound" else 0
            load = (0.5, 0.65)[seed % 2]
            situation = random_situation(seed, tasks=1000, servers=64, models=4, load=load, backbones=count)
            start = time.perf_counter()
            max_share(situation)
            own.append(time.perf_counter() - start)
    return {kind: {"median": statistics.median(own), "most": max(own)} for kind, own in took.items()}


def fewer(*, quick: bool) -> dict[str, Any]:
    """Backbones against the baselines'."""
    rows: dict[str, dict[str, int]] = {}
    for name, baseline in {"instance per task": instance_per_task, "spread": spread}.items():
        counts = {"situations": 0, "more": 0, "ours": 0, "theirs": 0, "unplaced": 0}
        for seed in range(40 if quick else 400):
            rng = random.Random(seed)
            situation = random_situation(
                seed, tasks=rng.randrange(1, 40), servers=8, models=rng.randrange(1, 4), load=rng.uniform(0.05, 0.6)
            )
            theirs, ours = baseline(situation), max_share(situation)
            if not theirs.unplaced:
                counts["situations"] += 1
                counts["unplaced"] += bool(ours.unplaced)
                counts["more"] += len(ours.backbones) > len(theirs.backbones)
                counts["ours"] += len(ours.backbones)
                counts["theirs"] += len(theirs.backbones)
        rows[name] = counts
    return rows


def exact(*, quick: bool) -> dict[str, Any]:
    """Backbones against the fewest."""
    ours, split, fewest, worst = 0, 0, 0, 1.0
    for seed in range(20 if quick else 200):
        rng = random.Random(seed)
        count = rng.randrange(6, 11)
        situation = random_situation(
            seed, tasks=count, servers=count, models=rng.randrange(1, 3), load=rng.uniform(0.2, 0.5), room=0
        )
        best = least_backbones(situation)
        if best > count:  # a task that is too much for any one backbone
            continue
        own = len(max_share(situation, split=False).backbones)
        ours, fewest, worst = ours + own, fewest + best, max(worst, own / best)
        split += len(max_share(situation).backbones)
    return {"ours": ours, "split": split, "fewest": fewest, "of_fewest": ours / fewest, "worst": worst}


# -- simulated


def measured() -> CostModel:
    """Fitted to passes in this process."""
    file = Path("benchmarks")
    own = {"model": subject().model, "dtype": subject().dtype, "family": "text-encoder", "threads": "1"}
    config = load_backbone_config(file, own)
    device = "cuda:0" if subject().gpu else "cpu"
    cost = CostModel()
    runtime = family(config.family).make_runtime(config, file, device, BMAX, cost.predict)
    cost.seed([each for _ in range(5) for each in runtime.profile()])
    return cost


@dataclass(frozen=True, slots=True)
class Cluster:
    """Servers that are alike; memory is counted in thousandths of an instance's."""

    cost: CostModel
    seconds: float
    servers: int = SERVERS

    @property
    def full(self) -> float:
        """Rows per second that a server serves in full batches of the mean length."""
        return BMAX / self.latency(BMAX, MEAN_LENGTH)

    @property
    def slo(self) -> float:
        """Of all tasks."""
        return SLO * self.latency(1, max(LENGTHS))

    def situation(self, count: int, load: float) -> Situation:
        """The first `count` tasks of a random row of them, each of `load` on average (half to one and a half)."""
        rng = random.Random(0)
        model = Model("m", 1000, self.latency, max_batch=BMAX, slots=4096)
        tasks = []
        for number in range(count):
            rate = load * rng.uniform(0.5, 1.5) * self.full
            tasks.append(Task(f"t{number}", "m", rate, MEAN_LENGTH, self.slo, round(1000 * EXTENSION)))
        servers = tuple(Server(f"s{number}", round(1000 * HOLDS * (1 + EXTENSION))) for number in range(self.servers))
        return Situation(servers, (model,), tuple(tasks))

    def latency(self, rows: int, tokens: float) -> float:
        """Of a batch."""
        return self.cost.batch(Work(rows, rows * tokens, rows * tokens**2), 0)

    def serve(self, situation: Situation, plan: Plan, *, shared: bool) -> list[Served]:
        """Poisson arrivals at all tasks, each server on its own; a split task's go to either backbone at random."""
        server_of = {backbone.name: backbone.server for backbone in plan.backbones}
        number_of = {name: number for number, name in enumerate(server_of)}
        arrivals: dict[str, list[Arrival]] = {server.name: [] for server in situation.servers}
        instance: dict[int, int] = {}
        for at, task in enumerate(situation.tasks):
            own = [each for each in plan.bindings if each.task == task.name]
            rng = random.Random(at)
            for moment in poisson(task.rate, self.seconds, seed=at):
                place = rng.choices(own, [each.share for each in own])[0].backbone
                # a part of a split task is another queue, on another server
                key = at if place == own[0].backbone else at + len(situation.tasks)
                instance[key] = number_of[place]
                arrivals[server_of[place]].append(Arrival(moment, key, rng.choice(LENGTHS)))
        served: list[Served] = []
        for each in arrivals.values():
            if shared:
                weights = [1.0] * (2 * len(situation.tasks))
                served += simulate(each, weights, self.cost, max_items=BMAX, plan_passes=plan_passes)
            else:
                served += colocated(each, instance, self.cost, BMAX)
        return served

    def within(self, served: list[Served]) -> float:
        """The part of all requests that were served within the SLO."""
        return sum(each.finish - each.arrival.time <= self.slo for each in served) / max(1, len(served))


Placing = Callable[[Situation], Plan]
ARMS: dict[str, tuple[Placing, bool]] = {"max-share": (max_share, True), "instances": (instance_per_task, False)}


def sustained(cluster: Cluster, load: float, arm: str) -> int:
    """The most tasks that are placed, and of whose requests enough are within the SLO."""
    place, shared = ARMS[arm]

    def holds(count: int) -> bool:
        situation = cluster.situation(count, load)
        plan = place(situation)
        return not plan.unplaced and cluster.within(cluster.serve(situation, plan, shared=shared)) >= WITHIN

    low, high = 0, 1
    while holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def table(cluster: Cluster) -> list[dict[str, Any]]:
    """For each load the tasks that are sustained, and the latencies on one server."""
    rows, one = [], replace(cluster, servers=1, seconds=4 * cluster.seconds)
    for name, load in LOADS.items():
        tasks = {arm: sustained(cluster, load, arm) for arm in ARMS}
        count = sustained(one, load, "instances")
        situation = one.situation(count, load)
        latency = {arm: _latencies(one, situation, arm) for arm in ARMS}
        rows.append({"load": name, "of_full": load, "tasks": tasks, "on_one": count, "latency": latency})
    return rows


def _latencies(cluster: Cluster, situation: Situation, arm: str) -> dict[str, float]:
    place, shared = ARMS[arm]
    served = cluster.serve(situation, place(situation), shared=shared)
    seconds = [each.finish - each.arrival.time for each in served]
    return {"mean_ms": 1e3 * statistics.fmean(seconds), "p99_ms": percentile_ms(seconds, 99)}


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """All parts."""
    cost = measured()
    cluster = Cluster(cost, 4.0 if quick else 20.0)
    fitted = {"fixed_ms": cost.fixed * 1e3, "per_token_us": cost.per_token * 1e6, "slo_ms": cluster.slo * 1e3}
    parts = {"speed": speed(quick=quick), "fewer": fewer(quick=quick), "exact": exact(quick=quick)}
    return [{"fitted": fitted, "table": table(cluster)} | parts]


def show(rows: list[dict[str, Any]]) -> None:
    """All of it."""
    for row in rows:
        for kind, took in row["speed"].items():
            verdict = against(took["most"], SECONDS, at_most=True)
            print(f"1,000 tasks, 64 servers, {kind}: {took['median']:.2f} s (at most {took['most']:.2f}; {verdict})")
        for name, own in row["fewer"].items():
            print(
                f"{own['situations']} random situations that {name} places: {own['ours']} backbones against "
                f"{own['theirs']}; more in {own['more']}, not all placed in {own['unplaced']}"
            )
        best = row["exact"]
        print(
            f"against the fewest, {best['fewest']}: {best['ours']}, {best['of_fewest']:.3f} of it "
            f"({against(best['of_fewest'], OF_EXACT, at_most=True)}; at worst {best['worst']:.2f}); with splitting "
            f"{best['split']}"
        )
        print("fitted: " + ", ".join(f"{name} {value:.2f}" for name, value in row["fitted"].items()))
        for each in row["table"]:
            ours, theirs = (each["tasks"][arm] for arm in ARMS)
            print(
                f"SIMULATED {each['load']} load, {each['of_full']:.0%} of a server by each task: {ours} tasks, by an "
                f"instance per task {theirs}: {ours / max(1, theirs):.2f} times (paper: {PAPER[each['load']]})"
            )
            parts = []
            for key, paper in {"mean_ms": "15%", "p99_ms": "26%"}.items():
                own, other = (each["latency"][arm][key] for arm in ARMS)
                change = f"{abs(1 - own / other):.0%} {'less' if own <= other else 'MORE'}"
                parts.append(
                    f"{key.removesuffix('_ms')} {own:.0f} against {other:.0f} ms, {change} (paper: {paper} less)"
                )
            print(f"    {each['on_one']} tasks on one server: {'; '.join(parts)}")


if __name__ == "__main__":
    show(run())
