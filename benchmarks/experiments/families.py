"""What `vision`, `series` and `audio` measure, each of its family: see `vision`."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.experiments.memory import compared
from benchmarks.experiments.throughput import of_bare
from benchmarks.harness.bare_family import BareFamily
from benchmarks.harness.compare import against, interleave, ratio, text
from benchmarks.harness.families import TASKS, Measured, Point, ask_in_turn, served
from benchmarks.harness.serving import pss_mib, received_seconds
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Outcome, Plan, Stream
from testing.repositories import Task
from testing.servers import Serving

TARGETS = {"memory": 1.05, "head": 0.93, "lora": 0.90, "fairness": 0.98}
WEIGHTS = {"three": 3.0, "one": 1.0}
ROUNDS, QUICK_ROUNDS, MEMORY_ROUNDS = 5, 1, 2
QUICK_S = 2.0
REQUESTS = 20  # before memory is read
WARMUP_S = 0.7
PUBLISHED_S = 1.5  # the account that /metrics shows is up to a second old
BATCHES = 3  # of requests that are under way: one runs, one is queued, and one is on its way


def measure(measured: Measured, *, quick: bool) -> list[dict[str, Any]]:
    """All rows of a family."""
    with tempfile.TemporaryDirectory() as folder:
        model = measured.model(Path(folder))
        kinds = {kind: measured.tasks(kind, Path(folder), model) for kind in ("head", "lora")}
        rows = [] if quick else [_memory(measured, model, kinds["lora"])]
        rivals = measured.rivals(WEIGHTS)
        with (
            served(measured, model, [*kinds["head"], *kinds["lora"], *rivals]) as server,
            Generator(subject().apart.generator) as generator,
        ):
            for place in range(len(measured.points)):
                rows += _throughput(measured, model, place, kinds, server, generator, quick=quick)
            return [*rows, _fairness(measured, server, generator, quick=quick)]


def _memory(measured: Measured, model: str, tasks: Sequence[Task]) -> dict[str, Any]:
    point = measured.points[0]
    inputs = point.inputs(REQUESTS)

    def memory(count: int) -> float:
        own = tasks[:count]
        with served(measured, model, own, apart=False, MALLOC_ARENA_MAX="1") as server:
            ask_in_turn(server, [task.name for task in own], inputs, point.reads)
            return pss_mib(server)

    return {"what": "memory"} | compared(memory, 1, TASKS, TARGETS["memory"], MEMORY_ROUNDS)


def _good(outcome: Outcome) -> None:
    if outcome.failures:
        raise RuntimeError(f"{outcome.failures} requests failed: {outcome.errors}")


def _throughput(
    measured: Measured,
    model: str,
    place: int,
    kinds: dict[str, list[Task]],
    server: Serving,
    generator: Generator,
    *,
    quick: bool,
) -> list[dict[str, Any]]:
    point, seconds = measured.points[place], QUICK_S if quick else measured.seconds[0]
    clients = BATCHES * _batch(measured, point)
    inputs = point.inputs(4 * clients)  # those under way are all different: equal ones would share rows

    def served_by(tasks: list[Task], seconds: float = seconds) -> Any:
        stream = Stream([task.name for task in tasks], inputs, clients, outputs=(), reads=point.reads)
        plan = Plan(server.grpc_url, [stream], seconds, WARMUP_S, usage=True)
        return lambda _: generator.run(plan)

    with BareFamily(measured, model, inputs, place) as bare:
        arms: dict[str, Any] = {kind: served_by(tasks) for kind, tasks in kinds.items()}
        for tasks in kinds.values():
            served_by(tasks, 0.5)(0)
        arms["bare"] = lambda _: bare.per_second(seconds / 2)
        arms["prepared"] = lambda _: bare.per_second(seconds / 2, prepared=True)
        seen = interleave(arms, QUICK_ROUNDS if quick else ROUNDS)
    limit, prepared = seen.pop("bare"), seen.pop("prepared")
    return [
        {
            "what": "throughput",
            "kind": kind,
            "point": point.name,
            "target": TARGETS[kind],
            **of_bare(outcomes, limit),
            "of_prepared": ratio([each.per_second for each in outcomes], prepared),
            "prepared_of_bare": ratio(prepared, limit),
            "clients": clients,
        }
        for kind, outcomes in seen.items()
    ]


def _batch(measured: Measured, point: Point) -> int:
    return max(1, measured.bmax // point.rows)


def _fairness(measured: Measured, server: Serving, generator: Generator, *, quick: bool) -> dict[str, Any]:
    point, seconds = measured.fair, QUICK_S * 2 if quick else measured.seconds[1]
    clients = 2 * BATCHES * _batch(measured, point)
    inputs = point.inputs(4 * clients)
    streams = [
        Stream([name], inputs[number::2], clients, outputs=(), reads=point.reads) for number, name in enumerate(WEIGHTS)
    ]
    looks: list[dict[str, float]] = []

    def watch() -> None:
        for wait in (PUBLISHED_S, seconds):
            time.sleep(wait)
            looks.append(received_seconds(server))

    plan = Plan(server.grpc_url, streams, PUBLISHED_S + seconds, 2 * WARMUP_S, usage=True)
    outcome = generator.run(plan, beside=watch)
    _good(outcome)
    before, after = looks
    received = {name: after[name] - before[name] for name in WEIGHTS}
    shares = [received[name] / weight for name, weight in WEIGHTS.items()]
    return {
        "what": "fairness",
        "point": point.name,
        "target": TARGETS["fairness"],
        "score": min(shares) / max(shares),
        "received_s": received,
        "answered": {name: outcome.tasks[name].answered for name in WEIGHTS},
        "seconds": seconds,
        "clients": clients,
        "cores": str(subject().apart),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A line or two for each row."""
    shown = {"memory": _show_memory, "throughput": _show_throughput, "fairness": _show_fairness}
    for row in rows:
        shown[row["what"]](row)


def _show_memory(row: dict[str, Any]) -> None:
    print(
        f"{row['many']} LoRA tasks take {text(row['ratio'])} of the memory of {row['few']} "
        f"({against(row['ratio']['median'], row['target'], at_most=True)}): {row['many_mib']['median']:.0f} against "
        f"{row['few_mib']['median']:.0f} MiB; rounds: {row['rounds']}"
    )


def _show_throughput(row: dict[str, Any]) -> None:
    print(
        f"{TASKS} {row['kind']:4} tasks, {row['point']}: {row['ratio']:.3f} of bare "
        f"({against(row['ratio'], row['target'])}; {row['ratio_min']:.3f} to {row['ratio_max']:.3f} in {row['rounds']} "
        f"rounds); {row['served_per_s']:.1f} against {row['bare_per_s']:.1f} a second, batches of "
        f"{row['batch_items']:.1f} rows"
    )
    print(
        f"    preparing on the same core takes the bare loop to {text(row['prepared_of_bare'])}; the server has "
        f"{text(row['of_prepared'])} of that"
    )


def _show_fairness(row: dict[str, Any]) -> None:
    three, one = row["received_s"].values()
    answers = " and ".join(map(str, row["answered"].values()))
    times = three / one if one else math.inf
    print(
        f"3:1, both backlogged, {row['point']}: {row['score']:.4f} ({against(row['score'], row['target'])}), "
        f"{times:.3f}:1 in {three + one:.1f} s of service; answers {answers}"
    )
