"""Shares: how language-model tasks of weights 3:1 divide the backbone's seconds, and what that costs in tokens.

SmolLM2-135M-Instruct on the real server, on one core, 16 sequences a step; Triton and the client on the other core. Two
tasks have 24 streams each, at all times more than a step takes; prompts of 64 tokens, answers of 48. Service is what
each is charged for, by the backbone's account over 60 s without a break: a lag, which the scheduler bounds by seconds
and not by a part, counts more the shorter the span. Tokens are those of prompts and answers, in rounds that take turns
with a server that schedules in the order of arrival.
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
    rounds, seconds, span = (2, 5.0, 10.0) if quick else (4, 16.0, 60.0)
    tasks = dict.fromkeys(WEIGHTS)
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(served(tasks, weights=WEIGHTS, scheduler=name)) for name in ("bfq", "fifo")
        }
        streams = stack.enter_context(Streams(subject().apart.generator))
        rates = interleave({name: _rate(server, streams, seconds) for name, server in servers.items()}, rounds)
        service = {name: _service(server, streams, span) for name, server in servers.items()}
    return [
        {
            "per_second": {name: spread(each) for name, each in rates.items()},
            "of_fifo": ratio(rates["bfq"], rates["fifo"]),
            "service_s": service,
            "times": {name: own["three"] / own["one"] for name, own in service.items()},
            "accounted_s": span,
            "seconds": rounds * seconds,
            "rounds": rounds,
            "cores": str(subject().apart),
        }
    ]


def _plan(server: Serving, seconds: float, number: int) -> StreamPlan:
    loads = [
        Load(task, prompts(64, 48, 2 * BACKLOG, 10 * number + place), BACKLOG) for place, task in enumerate(WEIGHTS)
    ]
    return StreamPlan(server.grpc_url, loads, seconds, WARMUP_S)


def _rate(server: Serving, streams: Streams, seconds: float) -> Callable[[int], float]:
    """Of a round: tokens per second."""

    def once(number: int) -> float:
        tallies = streams.good(_plan(server, seconds, number))
        return sum(tally.whole for tally in tallies.values()) / seconds

    return once


def _service(server: Serving, streams: Streams, seconds: float) -> dict[str, float]:
    """The service of each task in so many seconds, while all streams run."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(streams.good, _plan(server, seconds + PUBLISHED_S, 0))
        time.sleep(WARMUP_S)
        before = service_seconds(server)
        time.sleep(seconds)
        after = service_seconds(server)
        running.result()
    return {task: after[task] - before[task] for task in WEIGHTS}


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
