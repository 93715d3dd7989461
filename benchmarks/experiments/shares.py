"""Shares: how language-model tasks of weights 3:1 divide the backbone's seconds, and what that costs in tokens.

SmolLM2-135M-Instruct on the real server, on one core, 16 sequences a step; Triton and the client on the other core. Two
tasks have 24 streams each, at all times more than a step takes; prompts of 64 tokens, answers of 48. Service is what
each is charged for, by the backbone's account over all rounds together; tokens are those of prompts and answers. A
server that schedules in the order of arrival takes turns with it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.harness.compare import against, interleave, ratio, spread, text
from benchmarks.harness.language_model import prompts, served
from benchmarks.harness.serving import service_seconds
from benchmarks.harness.subject import subject
from benchmarks.load.streams import Load, StreamPlan, Streams
from testing.servers import Serving

WEIGHTS = {"three": 3.0, "one": 1.0}
BACKLOG = 24  # streams of each task
OF_FIFO, OFF = 0.97, 0.02
WARMUP_S = 3.0
PUBLISHED_S = 1.1  # the account that /metrics shows is up to a second old


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """One row."""
    rounds, seconds = (2, 5.0) if quick else (4, 16.0)
    tasks = dict.fromkeys(WEIGHTS)
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(served(tasks, weights=WEIGHTS, scheduler=name)) for name in ("bfq", "fifo")
        }
        streams = stack.enter_context(Streams(subject().apart.generator))
        seen = interleave({name: _measure(server, streams, seconds) for name, server in servers.items()}, rounds)
    return [_row(seen, rounds, seconds)]


def _measure(
    server: Serving, streams: Streams, seconds: float
) -> Callable[[int], tuple[float, dict[str, float], float]]:
    """Of a round: tokens per second, the service of each task, and the seconds that it is of."""

    def once(number: int) -> tuple[float, dict[str, float], float]:
        loads = [
            Load(task, prompts(64, 48, 2 * BACKLOG, 10 * number + place), BACKLOG) for place, task in enumerate(WEIGHTS)
        ]
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(streams.good, StreamPlan(server.grpc_url, loads, seconds, WARMUP_S))
            time.sleep(WARMUP_S)
            before, start = service_seconds(server), time.perf_counter()
            time.sleep(seconds - PUBLISHED_S)  # all streams still run
            after, end = service_seconds(server), time.perf_counter()
            tallies = running.result()
        service = {task: after[task] - before[task] for task in WEIGHTS}
        return sum(tally.whole for tally in tallies.values()) / seconds, service, end - start

    return once


def _row(seen: dict[str, list[tuple[float, dict[str, float], float]]], rounds: int, seconds: float) -> dict[str, Any]:
    rates = {name: [rate for rate, _, _ in results] for name, results in seen.items()}
    service = {
        name: {task: sum(own[task] for _, own, _ in results) for task in WEIGHTS} for name, results in seen.items()
    }
    return {
        "per_second": {name: spread(each) for name, each in rates.items()},
        "of_fifo": ratio(rates["bfq"], rates["fifo"]),
        "service_s": service,
        "times": {name: own["three"] / own["one"] for name, own in service.items()},
        "accounted_s": sum(span for _, _, span in seen["bfq"]),
        "seconds": rounds * seconds,
        "rounds": rounds,
        "cores": str(subject().apart),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Two lines."""
    for row in rows:
        times, rates = row["times"], row["per_second"]
        off = abs(times["bfq"] / WEIGHTS["three"] - 1)
        print(
            f"3:1 for {row['accounted_s']:.0f} s: service {times['bfq']:.3f}:1, {off:.1%} off "
            f"({against(off, OFF, at_most=True)}); in the order of arrival {times['fifo']:.2f}:1\n"
            f"    tokens/s {text(row['of_fifo'])} of those in the order of arrival "
            f"({against(row['of_fifo']['median'], OF_FIFO)}): {rates['bfq']['median']:.0f} and "
            f"{rates['fifo']['median']:.0f}; rounds: {row['rounds']}"
        )


if __name__ == "__main__":
    show(run())
