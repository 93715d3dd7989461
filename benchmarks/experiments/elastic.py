"""A load step from 40% to 160% of one backbone's capacity: how soon requests are within their SLO again.

Eight tasks, half of them with LoRA, are bound to the first of two backbones, which have a core each; the second is
idle. Triton, the generator and the controller share both cores with them. Texts are long, so that the backbones take
most of the time. Requests come by a Poisson process: 40% of a backbone's capacity, then 160%. That is half of what both
answer at most: cores that share caches and memory do less together than each alone.

Three ways of serving take turns: with the controller's elasticity, without it, and an instance per task, whose eight
processes have both cores from the beginning. Recovery is the time after the step from which on, in every half second,
95% of the requests are answered within the SLO; it ends with the window, and is that long where it never comes.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.arms import Arm, Task, ask_all, per_task
from benchmarks.harness.compare import against, interleave, spread, text
from benchmarks.harness.repositories import model_directory, texts_of_length, write_adapters
from benchmarks.harness.serving import pin, serving
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Outcome, Plan, Stream, closed
from benchmarks.load.arrivals import poisson
from fmplex_controller.records.events import read_events
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar.adaptation import ElasticOptions
from fmplex_controller.sidecar.elastic import Settings
from fmplex_controller.sidecar.planning import Limits
from fmplex_controller.sidecar.rebinding import rebind
from fmplex_controller.sidecar.triton import Triton
from testing import repositories
from testing.controllers import controller
from testing.servers import Serving, eventually

TASKS, TOKENS, CLIENTS = 8, 64, 32
BACKBONES = ("first", "second")
SLO_S = 0.5
LOW, HIGH = 0.4, 1.6  # of the first backbone's capacity
BEFORE_S, WARM_S = 3.0, 3.0  # the low load in the window, and before it
WINDOW_S, WITHIN = 0.5, 0.95
GRID_S = 0.1
TARGET_S = 3.0
# Backbones that are pinned to a core each tell of one core.
MAY = ElasticOptions(Settings(start=False), Limits(parallel=len(BACKBONES)))


@dataclass
class Step:
    """One round of an arm."""

    outcome: Outcome
    after_s: float  # of the high load
    # what the controller did: seconds after the step, kind, reason, outcome
    events: list[tuple[float, str, str, str]] = field(default_factory=list)

    @property
    def recovery_s(self) -> float:
        """See the module."""
        return recovery(self.outcome.timeline, BEFORE_S, BEFORE_S + self.after_s)

    def within(self, *, high: bool) -> float:
        """The part of the requests before or after the step that were answered within the SLO."""
        own = [seconds for due, seconds in self.outcome.timeline if (due >= BEFORE_S) == high]
        return sum(each <= SLO_S for each in own) / len(own) if own else math.nan


def recovery(timeline: Sequence[tuple[float, float]], step: float, end: float) -> float:
    """Seconds after `step` from which on every WINDOW_S has WITHIN of its requests within the SLO."""
    last_bad, at = step, step
    while at + WINDOW_S <= end:
        own = [seconds for due, seconds in timeline if at <= due < at + WINDOW_S]
        if own and sum(each <= SLO_S for each in own) < WITHIN * len(own):
            last_bad = at + GRID_S
        at += GRID_S
    return last_bad - step if last_bad + WINDOW_S <= end else end - step


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row per way of serving."""
    rounds, after_s = (1, 8.0) if quick else (3, 10.0)
    with tempfile.TemporaryDirectory() as folder, Generator(None) as generator:
        root = Path(folder)
        tasks = _tasks(root)
        _write(root / "repository", tasks)
        with (
            serving(root / "repository") as server,
            per_task(tasks, cores=subject().spread, name="per-task") as instances,
        ):
            _pin(server)
            ask_all(server, tasks)
            texts = texts_of_length(TOKENS, 512)
            names = [task.name for task in tasks]
            alone, both = _capacities(server, generator, names, texts)
            bench = _Bench(generator, tasks, texts, both / 2, after_s)
            found = interleave(
                {
                    "elastic": lambda number: bench.elastic(server, root / f"records{number}", number),
                    "off": lambda number: bench.step(server.grpc_url, number),
                    "per-task": lambda number: bench.instances(instances, number),
                },
                rounds,
            )
    return [_row(name, steps) | {"alone": alone, "both": both} for name, steps in found.items()]


def _capacities(server: Serving, generator: Generator, names: list[str], texts: list[str]) -> tuple[float, float]:
    """Requests per second of the first backbone while the other is idle, and of both with half of the tasks each."""
    plan = closed(server.grpc_url, names, texts, clients=CLIENTS, seconds=3.0)
    alone = generator.run(plan).per_second
    _bind(server, dict.fromkeys(names[: len(names) // 2], BACKBONES[1]))
    both = generator.run(plan).per_second
    _bind(server, dict.fromkeys(names, BACKBONES[0]))
    return alone, both


@dataclass
class _Bench:
    generator: Generator
    tasks: Sequence[Task]
    texts: Sequence[str]
    capacity: float  # requests per second
    after_s: float

    def step(self, url: str, seed: int) -> Step:
        """The load step against a server."""
        low_s = WARM_S + BEFORE_S
        high = [low_s + at for at in poisson(HIGH * self.capacity, self.after_s, seed + 100)]
        times = [*poisson(LOW * self.capacity, low_s, seed), *high]
        stream = Stream([task.name for task in self.tasks], self.texts, times=times, slo_ms=SLO_S * 1e3)
        plan = Plan(url, [stream], BEFORE_S + self.after_s, WARM_S, timeline=True)
        return Step(self.generator.run(plan), self.after_s)

    def elastic(self, server: Serving, records: Path, seed: int) -> Step:
        """With the controller beside it; then all tasks go back to where they were."""
        options = ["--records", str(records), *MAY.arguments]
        with controller(server, *options):
            eventually(lambda: any(read_events(records)), "the controller runs", 60.0)
            time.sleep(2.0)
            found = self.step(server.grpc_url, seed)
            step_at = found.outcome.began + BEFORE_S
            events = [event for event in read_events(records) if event.kind in ("overloaded", "rebound")]
        found.events = [(event.time.timestamp() - step_at, event.kind, event.reason, event.outcome) for event in events]
        _bind(server, {task.name: BACKBONES[0] for task in self.tasks})
        return found

    def instances(self, arm: Arm, seed: int) -> Step:
        """An instance per task."""
        return self.step(arm.url, seed)


def _tasks(root: Path) -> list[Task]:
    adapters = write_adapters(root, TASKS // 2)
    return [
        Task(f"task{number}", adapter=adapters[number // 2] if number % 2 else None, slo_ms=SLO_S * 1e3)
        for number in range(TASKS)
    ]


def _write(repository: Path, tasks: Sequence[Task]) -> None:
    own = subject()
    for name in BACKBONES:
        settings = {"dtype": own.dtype, "family": "text-encoder", "threads": "1"}
        repositories.write_backbone(
            repository, name, model=own.model, max_batch_size=own.max_batch, kind=own.kind, **settings
        )
    for number, task in enumerate(tasks):
        entry = repositories.Task(
            task.name,
            number,
            adapter=task.adapter,
            labels=2,
            max_batch_size=own.max_batch,
            backbone=BACKBONES[0],
            model=model_directory(),
            hidden=own.hidden,
            parameters={"slo_ms": f"{SLO_S * 1e3:g}"},
        )
        repositories.write_task(repository, entry)


def _pin(server: Serving) -> None:
    """A core for each backbone; the others run on both."""
    cores = subject().spread.models
    pin(server.process, *cores)
    for name, core in zip(BACKBONES, cores, strict=False):
        pin(server.stub(name), core)


def _bind(server: Serving, places: Mapping[str, str]) -> None:
    with contextlib.closing(Triton(server.grpc_url)) as triton:
        for name, backbone in places.items():
            rebind(server.repository, triton, name, backbone, journal=Journal(), why="")


def _row(name: str, steps: Sequence[Step]) -> dict[str, Any]:
    return {
        "arm": name,
        "after_s": steps[0].after_s,
        "recovery_s": spread([step.recovery_s for step in steps]),
        "recoveries_s": [step.recovery_s for step in steps],
        "within_before": spread([step.within(high=False) for step in steps]),
        "within_after": spread([step.within(high=True) for step in steps]),
        "p99_ms": spread([step.outcome.p99_ms for step in steps]),
        "failures": sum(step.outcome.failures for step in steps),
        "requests": sum(step.outcome.offered for step in steps),
        "events": [step.events for step in steps],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Two lines for each."""
    for row in rows:
        got = row["recovery_s"]["median"]
        never = " (not within the window)" if got >= row["after_s"] else ""
        target = f", {against(got, TARGET_S, at_most=True)}" if row["arm"] == "elastic" else ""
        print(f"{row['arm']}: within the SLO again after {text(row['recovery_s'], '.1f')} s{never}{target}")
        print(
            f"    within {SLO_S * 1e3:g} ms: {text(row['within_before'])} before the step, {text(row['within_after'])} "
            f"in {row['after_s']:g} s after it; {row['failures']} of {row['requests']} requests failed"
        )
        for events in filter(None, row["events"]):
            seen = [f"at {at:.1f} s {reason}" for at, kind, reason, _ in events if kind == "overloaded"]
            moves = [at for at, kind, _, outcome in events if (kind, outcome) == ("rebound", "done")]
            span = f", from {min(moves):.1f} to {max(moves):.1f} s" if moves else ""
            print(f"    seen: {'; '.join(seen)}. Moved: {len(moves)} tasks{span}")
    alone, both = (rows[0][name] for name in ("alone", "both"))
    print(
        f"capacity: both backbones {both:.1f} requests/s of {TOKENS} tokens, a half of which counts as that of one; "
        f"one while the other is idle {alone:.1f}"
    )


if __name__ == "__main__":
    show(run())
