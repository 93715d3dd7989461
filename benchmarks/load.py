"""The load generator: one asyncio gRPC client in a process of its own, closed loop.

A worker sends its next request when it has the answer to the last one. Requests go to the tasks in turn.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpcclient


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send: `clients` workers for `seconds`, the first `warmup` of them not counted."""

    url: str
    tasks: list[str]
    texts: list[str]
    clients: int = 64
    seconds: float = 5.0
    warmup: float = 1.0
    core: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back in the counted time."""

    requests: int
    failures: int
    per_second: float
    p50_ms: float
    p99_ms: float
    batch_items: float
    by_task: dict[str, int]


def run_load(plan: Plan) -> Outcome:
    """Generate load from a fresh process, on its own core where the plan names one."""
    line = [sys.executable, "-m", "benchmarks.load"]
    done = subprocess.run(line, input=json.dumps(asdict(plan)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the load generator failed:\n{done.stderr[-2000:]}")
    return Outcome(**json.loads(done.stdout))


async def _worker(plan: Plan, number: int, client: Any, begin: float, end: float, seen: list[Any]) -> None:
    turn = number
    while (sent := time.perf_counter()) < end:
        task, text = plan.tasks[turn % len(plan.tasks)], plan.texts[turn % len(plan.texts)]
        turn += plan.clients + 1
        tensor = grpcclient.InferInput("TEXT", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text]], dtype=np.object_))
        items = 0
        try:
            answer = await client.infer(task, [tensor])
            items = int(answer.as_numpy("usage")[0, 2])
        except Exception as error:  # counted, and shown
            print(error, file=sys.stderr)
        done = time.perf_counter()
        if begin <= done <= end:
            seen.append((task, done - sent, items))


async def _generate(plan: Plan) -> Outcome:
    async with grpcclient.InferenceServerClient(plan.url) as client:
        begin = time.perf_counter() + plan.warmup
        end = begin + plan.seconds
        seen: list[Any] = []
        await asyncio.gather(*(_worker(plan, n, client, begin, end, seen) for n in range(plan.clients)))
    good = [entry for entry in seen if entry[2]]
    if not good:
        raise RuntimeError("no request was answered")
    latencies = np.array([latency for _, latency, _ in good]) * 1e3
    return Outcome(
        requests=len(good),
        failures=len(seen) - len(good),
        per_second=len(good) / plan.seconds,
        p50_ms=float(np.percentile(latencies, 50)),
        p99_ms=float(np.percentile(latencies, 99)),
        batch_items=float(np.mean([items for _, _, items in good])),
        by_task={task: sum(1 for entry in good if entry[0] == task) for task in plan.tasks},
    )


def main() -> None:
    """Read a plan from stdin, write the outcome to stdout."""
    plan = Plan(**json.load(sys.stdin))
    if plan.core is not None:
        os.sched_setaffinity(0, {plan.core})
    json.dump(asdict(asyncio.run(_generate(plan))), sys.stdout)


if __name__ == "__main__":
    if not Path("benchmarks").is_dir():
        sys.exit("run it from the project's folder")
    main()
