"""Clients: plain tritonclient, every call with a timeout."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.http.aio as httpclient
from reference import Outputs
from tritonclient.utils import InferenceServerException

TIMEOUT = 60.0  # seconds; whoever waits longer has found a hang
Parameters = dict[str, str | int | bool]


@dataclass(frozen=True, slots=True)
class Question:
    """One request."""

    task: str
    texts: tuple[str | bytes, ...]
    parameters: Parameters | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, batch first; or the error."""

    outputs: Outputs = field(default_factory=dict)
    error: InferenceServerException | None = None
    seconds: float = 0.0

    @property
    def batch_items(self) -> int:
        """Items of the batch that it was in."""
        return int(self.outputs["usage"][0, 2])

    @property
    def status(self) -> str:
        """The gRPC status without its class, "" where all is well."""
        return str(self.error.status()).removeprefix("StatusCode.") if self.error else ""

    @property
    def message(self) -> str:
        """The error's text."""
        return str(self.error.message()) if self.error else ""

    def good(self) -> Outputs:
        """The outputs; raises what went wrong instead."""
        if self.error:
            raise self.error
        return self.outputs


def text_tensor(types: ModuleType, texts: Sequence[str | bytes]) -> Any:
    """TEXT, [n, 1]."""
    cells = [[text if isinstance(text, bytes) else text.encode()] for text in texts]
    tensor = types.InferInput("TEXT", [len(cells), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(cells, dtype=np.object_).reshape(-1, 1))
    return tensor


class GrpcClient:
    """One channel, for any number of threads."""

    def __init__(self, url: str) -> None:
        self.raw = grpcclient.InferenceServerClient(url)

    def __enter__(self) -> GrpcClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.raw.close()

    def ask(self, question: Question, timeout: float = TIMEOUT) -> Answer:
        """Never raises for what the server says."""
        start = time.monotonic()
        tensor = text_tensor(grpcclient, question.texts)
        try:
            result = self.raw.infer(
                question.task, [tensor], client_timeout=timeout, parameters=dict(question.parameters or {})
            )
        except InferenceServerException as error:
            return Answer(error=error, seconds=time.monotonic() - start)
        names = [output.name for output in result.get_response().outputs]
        return Answer({name: result.as_numpy(name) for name in names}, seconds=time.monotonic() - start)

    def ask_one(self, task: str, *texts: str | bytes, **parameters: str | int | bool) -> Answer:
        """A question of these texts."""
        return self.ask(Question(task, texts, parameters))


def ask_grpc(url: str, questions: Sequence[Question], clients: int = 64) -> list[Answer]:
    """All questions from so many clients at once."""
    with GrpcClient(url) as client, ThreadPoolExecutor(clients) as pool:
        return list(pool.map(client.ask, questions))


def ask_http(url: str, questions: Sequence[Question], clients: int = 64) -> list[Answer]:
    """All questions from so many clients at once."""
    return asyncio.run(_ask_http(url, questions, clients))


async def _ask_http(url: str, questions: Sequence[Question], clients: int) -> list[Answer]:
    turn = asyncio.Semaphore(clients)
    async with httpclient.InferenceServerClient(url, conn_limit=clients) as client:

        async def ask(question: Question) -> Answer:
            tensor = text_tensor(httpclient, question.texts)
            async with turn:
                try:
                    call = client.infer(question.task, [tensor], parameters=question.parameters)
                    result = await asyncio.wait_for(call, TIMEOUT)
                except InferenceServerException as error:
                    return Answer(error=error)
            names = [output["name"] for output in result.get_response()["outputs"]]
            return Answer({name: result.as_numpy(name) for name in names})

        return list(await asyncio.gather(*map(ask, questions)))


Check = Callable[[Question, Answer], str]  # what is wrong with the answer, or ""


class Hammer:
    """Clients in the background, each asking its next question when the last is answered. Never gives up.

    As a context manager it raises at the end for any answer that was an error, or that `check` minds.
    """

    def __init__(self, url: str, questions: Sequence[Question], check: Check, clients: int = 16) -> None:
        self.questions, self.check = questions, check
        self.answered: Counter[str] = Counter()  # by task
        self.problems: list[str] = []
        self.slowest = 0.0
        self._client = GrpcClient(url)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(clients)]

    def __enter__(self) -> Hammer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT + 5)
        assert not any(thread.is_alive() for thread in self._threads)
        self._client.raw.close()
        if error is None:
            assert not self.problems, f"{len(self.problems)} of {self.total} answers: {self.problems[:3]}"
            assert self.total

    @property
    def total(self) -> int:
        """Answers so far."""
        return sum(self.answered.values())

    def wait_for(self, more: int) -> None:
        """Until so many more answers have come."""
        goal, patience = self.total + more, time.monotonic() + TIMEOUT
        while self.total < goal and not self.problems:
            assert time.monotonic() < patience, "the clients get no answers"
            time.sleep(0.01)

    def _run(self, number: int) -> None:
        turn = number
        while not self._stop.is_set():
            question = self.questions[turn % len(self.questions)]
            turn += len(self._threads) + 1
            answer = self._client.ask(question)
            problem = str(answer.error or "") or self.check(question, answer)
            if problem:
                self.problems.append(f"{question.task}: {problem}")
            self.slowest = max(self.slowest, answer.seconds)
            self.answered[question.task] += 1
