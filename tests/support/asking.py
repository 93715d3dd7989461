"""Many requests at once: over gRPC, over HTTP, and from clients that go on in the background.

`ask_grpc` and `ask_http` send texts with plain tritonclient. `ask_items` and `TaskClient` send any family's items with
FMplex's own clients, which know from a task's configuration what tensor it reads.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol

import aiohttp
import numpy as np
import numpy.typing as npt
import tritonclient.http.aio as httpclient
from tritonclient.utils import InferenceServerException
from typing_extensions import Self

from fmplex import AsyncClient, Client, ServerProblem
from fmplex.client.base import Outputs
from fmplex.client.wire import Interface, array_of
from testing.clients import TIMEOUT, Answer, GrpcClient, Question, text_tensor


def ask_grpc(url: str, questions: Sequence[Question], clients: int = 64) -> list[Answer]:
    """Ask all questions over gRPC, `clients` at a time; answers in their order."""
    with GrpcClient(url) as client, ThreadPoolExecutor(clients) as pool:
        return list(pool.map(client.ask, questions))


def ask_http(url: str, questions: Sequence[Question], clients: int = 64) -> list[Answer]:
    """Ask all questions over HTTP, `clients` at a time; answers in their order."""
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


def ask_items(url: str, questions: Sequence[Question], clients: int = 64) -> list[Answer]:
    """All questions, each in one request, so many of them at once; `url` says over which protocol."""
    return asyncio.run(_ask_items(url, questions, clients))


async def _ask_items(url: str, questions: Sequence[Question], clients: int) -> list[Answer]:
    turn = asyncio.Semaphore(clients)
    async with AsyncClient(url, timeout=TIMEOUT, retries=0) as client:

        async def ask(question: Question) -> Answer:
            async with turn:
                try:
                    interface = await client.interface(question.task)
                    if interface.streams and url.startswith("http"):
                        return _answer(await _generated(url, interface, question.texts))
                    return _answer(await client.outputs(question.task, question.texts, parameters=question.parameters))
                except ServerProblem as error:
                    return _refusal(error)

        return list(await asyncio.gather(*map(ask, questions)))


async def _generated(url: str, interface: Interface, items: Sequence[Any]) -> list[Outputs]:
    """Of a task whose answers may have parts: over HTTP, `generate` gives those that have one."""

    async def generate(session: aiohttp.ClientSession, item: Any) -> Outputs:
        (cell,) = array_of(interface.takes, [item]).ravel().tolist()
        body = {interface.takes: cell.decode() if isinstance(cell, bytes) else cell}
        async with session.post(f"{url}/v2/models/{interface.name}/generate", json=body) as response:
            document = await response.json(content_type=None)
        if response.status != 200:
            raise ServerProblem(document["error"], str(response.status))
        return {name: _cells(document[name]) for name in interface.outputs}

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(TIMEOUT)) as session:
        return list(await asyncio.gather(*(generate(session, item) for item in items)))


def _cells(value: Any) -> npt.NDArray[Any]:
    """An output of `generate`, which shows one element as itself."""
    cells = value if isinstance(value, list) else [value]
    as_bytes = [each.encode() if isinstance(each, str) else each for each in cells]
    return np.array(as_bytes, dtype=np.object_ if isinstance(cells[0], str) else None)


def _answer(rows: Sequence[Outputs], seconds: float = 0.0) -> Answer:
    return Answer({name: np.stack([row[name] for row in rows]) for name in rows[0]}, seconds=seconds)


def _refusal(error: ServerProblem, seconds: float = 0.0) -> Answer:
    return Answer(error=InferenceServerException(str(error), error.status), seconds=seconds)


class TaskClient:
    """FMplex's own client over gRPC, which answers as GrpcClient does. A question's items must fit in one request."""

    def __init__(self, url: str) -> None:
        self.client = Client(url, timeout=TIMEOUT, retries=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()

    def ask(self, question: Question) -> Answer:
        """Never raises for what the server says."""
        start = time.monotonic()
        try:
            rows = self.client.outputs(question.task, question.texts)
        except ServerProblem as error:
            return _refusal(error, time.monotonic() - start)
        return _answer(rows, time.monotonic() - start)


class Backlog:
    """Requests of several tasks, so many of each at any time, from one thread: many threads would starve each other.

    They take the items in turn. As a context manager it raises at the end for any answer that was an error.
    """

    def __init__(self, url: str, items: Iterable[Any], clients: Mapping[str, int]) -> None:
        self.url, self.items, self.clients = url, itertools.cycle(items), clients
        self.answered: Counter[str] = Counter()  # by task
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        self._running = self._pool.submit(asyncio.run, self._run())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._pool.shutdown()
        if error is None:
            self._running.result()

    def check(self) -> None:
        """Raise what has gone wrong so far."""
        if self._running.done():
            self._running.result()

    async def _run(self) -> None:
        async with AsyncClient(self.url, timeout=TIMEOUT, retries=0) as client:

            async def ask(task: str) -> None:
                while not self._stop.is_set():
                    await client.outputs(task, [next(self.items)])
                    self.answered[task] += 1

            await asyncio.gather(*(ask(task) for task, number in self.clients.items() for _ in range(number)))


class Asker(Protocol):
    """A client for any number of threads."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def ask(self, question: Question) -> Answer: ...


Check = Callable[[Question, Answer], str]  # what is wrong with the answer, or ""


class Hammer:
    """Clients in the background, each of which asks its next question when the last one has been answered.

    A context manager that raises at its end for any answer that was an error, or in which `check` found one.
    """

    def __init__(
        self,
        url: str,
        questions: Sequence[Question],
        check: Check,
        clients: int = 16,
        connect: Callable[[str], Asker] = GrpcClient,
    ) -> None:
        self.questions, self.check = questions, check
        self.answered: Counter[str] = Counter()  # by task
        self.problems: list[str] = []
        self.taken: list[float] = []  # seconds of each answer
        self._client = connect(url)
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
        self._client.__exit__(kind, error, trace)
        if error is None:
            assert not self.problems, f"{len(self.problems)} of {self.total} answers: {self.problems[:3]}"
            assert self.total

    @property
    def total(self) -> int:
        """Answers so far."""
        return sum(self.answered.values())

    @property
    def slowest(self) -> float:
        """Seconds of the slowest answer."""
        return max(self.taken, default=0.0)

    def wait_for(self, more: int) -> None:
        """Wait for so many more answers."""
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
            self.taken.append(answer.seconds)
            self.answered[question.task] += 1
