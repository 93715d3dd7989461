"""Waiting for what a server does at its own time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from sentences import sentence

from fmplex import Client, ServerProblem
from testing.clients import Answer, Question
from testing.servers import Serving, eventually

METRICS_S = 0.05  # /metrics changes some times a second, and to read it costs as much as some passes
# Texts that take some tenths of a second in one pass: of longer ones each portion would let others in.
LARGE = tuple(sentence(40, seed) for seed in range(32))
LARGER = tuple(sentence(150, seed) for seed in range(32))  # for a backbone that takes them in one pass


@contextlib.contextmanager
def busy(
    server: Serving, task: str, backbone: str = "minilm", texts: Sequence[str] = LARGE
) -> Iterator[Future[Answer]]:
    """A large request, which the backbone is at work on when the block begins; its answer must be a good one."""
    process = server.stub(backbone)
    before = _cpu_seconds(process)
    with server.client() as client, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.ask, Question(task, tuple(texts)))
        eventually(lambda: _cpu_seconds(process) > before + 0.1, f"{backbone} is at work")
        yield answer
        answer.result().good()


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


Samples = dict[tuple[str, str, str], float]


def published(server: Serving, task: str, item: Any = "a text") -> Samples:
    """Samples of /metrics that have all been published after this call.

    The backbone publishes them one by one, again and again. Refused requests of a task are counted, and so show how far
    it is: the first may be in a round that is under way, the second is in the next one, the third after that one's end.
    """
    for _ in range(3):
        _refuse_one(server, task, item)
    return server.metrics()


def _refuse_one(server: Serving, task: str, item: Any) -> None:
    before = server.metric("failures_total", task, "invalid")
    with Client(server.grpc_url, retries=0) as client, pytest.raises(ServerProblem, match="slo_ms") as refused:
        client.predict(task, [item], slo_ms=-1.0)
    assert refused.value.status == "INVALID_ARGUMENT"
    eventually(
        lambda: server.metric("failures_total", task, "invalid") == before + 1,
        f"{task}'s refusal is published",
        period=METRICS_S,
    )
