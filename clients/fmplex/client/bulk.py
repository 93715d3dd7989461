"""Any number of rows through a task: in batches, several at a time, answered in order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from typing import Any, TypeVar

from fmplex.client.aio import AsyncClient
from fmplex_backend.decoders.results import Result
from fmplex_backend.errors import Busy, DeadlineExceeded, FmplexError, ServerProblem, Unreachable

AT_A_TIME = 8  # batches that are asked or wait for being taken
HOPELESS = 3  # batches one after the other without a single answer
T = TypeVar("T")
U = TypeVar("U")


@dataclass(slots=True)
class Entry:
    """A row on its way: its item, then its result; or an error in their place."""

    row: Any
    item: Any = None
    result: Result | None = None
    error: str = ""


async def answered(
    client: AsyncClient, task: str, entries: Iterable[Entry], batch_size: int
) -> AsyncIterator[list[Entry]]:
    """The entries in batches, in order, each with its result or an error; those with an error are not sent.

    Raises ServerProblem where the server cannot be had, and where it has answered none of many rows: these rows are
    not among the entries that came before.
    """
    held: list[list[Entry]] = []  # batches whose rows have all failed: the rows' fault, or the task's
    hopeless = 0
    async for batch in in_order(_batches(entries, batch_size), lambda batch: ask(client, task, batch), AT_A_TIME):
        held.append(batch)
        sent = [entry for entry in batch if entry.item is not None]
        if sent and all(entry.error for entry in sent):
            hopeless += 1
            if hopeless == HOPELESS:
                raise ServerProblem(f"{task!r} answers nothing any more: {sent[-1].error}")
            continue
        hopeless = 0 if sent else hopeless
        for each in held:
            yield each
        held = []
    for each in held:
        yield each


async def ask(client: AsyncClient, task: str, batch: list[Entry]) -> list[Entry]:
    """A batch whose request fails is asked again row by row, so that a row's error is its own."""
    sent = [entry for entry in batch if not entry.error]
    if not sent:
        return batch
    try:
        results = await _predict(client, task, [entry.item for entry in sent])
    except (Busy, DeadlineExceeded, Unreachable):
        raise
    except FmplexError:
        for entry in sent:
            await _ask_alone(client, task, entry)
    else:
        for entry, result in zip(sent, results, strict=True):
            entry.result = result
    return batch


async def _ask_alone(client: AsyncClient, task: str, entry: Entry) -> None:
    try:
        (entry.result,) = await _predict(client, task, [entry.item])
    except (Busy, DeadlineExceeded, Unreachable):
        raise
    except FmplexError as error:
        entry.error = str(error)


async def _predict(client: AsyncClient, task: str, items: Sequence[Any]) -> list[Result]:
    """One that gets no answer in time is sent once more."""
    try:
        return await client.predict(task, items)
    except (Busy, DeadlineExceeded, Unreachable):
        return await client.predict(task, items)


def _batches(entries: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(entries)
    while batch := list(islice(rest, size)):
        yield batch


async def in_order(source: Iterator[T], ask: Callable[[T], Awaitable[U]], at_a_time: int) -> AsyncIterator[U]:
    """What `ask` gives for each of `source`, in their order, for so many of them at a time."""
    asked: asyncio.Queue[asyncio.Future[U] | None] = asyncio.Queue()
    room = asyncio.Semaphore(at_a_time)

    async def send() -> None:
        async for each in _read_ahead(source):
            await room.acquire()
            asked.put_nowait(asyncio.ensure_future(ask(each)))

    sender = asyncio.ensure_future(send())
    sender.add_done_callback(lambda _: asked.put_nowait(None))
    try:
        while (answer := await asked.get()) is not None:
            yield await answer
            room.release()
        await sender  # raises what reading raised
    finally:
        sender.cancel()
        rest = [answer for answer in iter(lambda: None if asked.empty() else asked.get_nowait(), None) if answer]
        for answer in rest:
            answer.cancel()
        await asyncio.gather(sender, *rest, return_exceptions=True)


async def _read_ahead(source: Iterator[T]) -> AsyncIterator[T]:
    """A thread reads, so that a slow pipe keeps no answer waiting; as a daemon, so that none keeps the process."""
    loop = asyncio.get_running_loop()
    wanted: SimpleQueue[asyncio.Future[list[T]] | None] = SimpleQueue()

    def read() -> None:
        while (future := wanted.get()) is not None:
            try:
                found, error = list(islice(source, 1)), None
            except Exception as raised:  # whatever it is, it is raised where the rows are awaited
                found, error = [], raised
            if loop.is_closed():
                return
            loop.call_soon_threadsafe(_settle, future, found, error)

    threading.Thread(target=read, name="fmplex-read", daemon=True).start()
    try:
        while True:
            future: asyncio.Future[list[T]] = loop.create_future()
            wanted.put(future)
            found = await future
            if not found:
                return
            yield found[0]
    finally:
        wanted.put(None)


def _settle(future: asyncio.Future[list[T]], found: list[T], error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(found)
    else:
        future.set_exception(error)
