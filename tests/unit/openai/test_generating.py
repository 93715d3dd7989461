"""Answers side by side, and clients that go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from openai_tasks import FakeTasks, Said

from fmplex_controller.openai.app import CLIENT_CLOSED
from fmplex_controller.openai.generating import merged

HELLO = {"model": "chat", "messages": [{"role": "user", "content": "Hello"}]}
SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/v1/chat/completions",
    "raw_path": b"",
    "query_string": b"",
    "headers": [(b"host", b"localhost:9000")],
    "asgi": {"version": "3.0", "spec_version": "2.3"},  # uvicorn's
}


class Script:
    """A stream that yields numbers when it is told to."""

    def __init__(self) -> None:
        self.more: asyncio.Queue[int | Exception | None] = asyncio.Queue()
        self.closed = False

    async def stream(self) -> AsyncGenerator[int, None]:
        try:
            while (told := await self.more.get()) is not None:
                if isinstance(told, Exception):
                    raise told
                yield told
        finally:
            self.closed = True


def test_parts_come_as_they_are_made() -> None:
    async def run() -> None:
        one, two = Script(), Script()
        both = merged([one.stream(), two.stream()])
        two.more.put_nowait(5)
        assert await anext(both) == (1, 5)
        one.more.put_nowait(6)
        assert await anext(both) == (0, 6)
        for each in (one, two):
            each.more.put_nowait(None)
        with pytest.raises(StopAsyncIteration):
            await anext(both)
        assert one.closed
        assert two.closed

    asyncio.run(run())


@pytest.mark.parametrize("ends", ["error", "closed", "cancelled"])
def test_all_are_closed_where_one_fails_or_nobody_reads_on(ends: str) -> None:
    async def run() -> None:
        one, two = Script(), Script()
        both = merged([one.stream(), two.stream()])
        one.more.put_nowait(1)
        assert await anext(both) == (0, 1)
        if ends == "error":
            two.more.put_nowait(ValueError("no"))
            with pytest.raises(ValueError, match="no"):
                await anext(both)
        elif ends == "closed":
            await both.aclose()
        else:
            waiting = asyncio.ensure_future(anext(both))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert one.closed
        assert two.closed

    asyncio.run(run())


async def hang_up(tasks: FakeTasks, after: int, n: int, **fields: Any) -> list[Any]:
    """Ask, and go away once so many messages were answered, or with 0 all answers have begun; what was sent."""
    app, sent, gone = tasks.app(), [], asyncio.Event()
    bodies = [json.dumps(HELLO | {"n": n} | fields).encode()]

    async def receive() -> dict[str, Any]:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        while not after and tasks.opened < n:
            await asyncio.sleep(0)
        await (gone.wait() if after else asyncio.sleep(0))
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) >= after:
            gone.set()

    async with app.router.lifespan_context(app):
        await asyncio.wait_for(app(dict(SCOPE), receive, send), 20)
    return sent


def test_who_hangs_up_before_all_is_sent_is_no_error() -> None:
    tasks, sent = FakeTasks(), []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        app = tasks.app()
        async with app.router.lifespan_context(app):
            await asyncio.wait_for(app(dict(SCOPE), receive, send), 20)

    messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    asyncio.run(run())
    assert [message["status"] for message in sent if "status" in message] == [CLIENT_CLOSED]
    assert not tasks.asked


@pytest.mark.parametrize("n", [1, 3])
def test_who_hangs_up_cancels_all_that_was_asked(n: int) -> None:
    """Before the first part, and in the middle of a stream."""
    for stream in (True, False):
        waiting = FakeTasks(parts=[None])
        asyncio.run(hang_up(waiting, 0, n, stream=stream))
        assert waiting.closed == waiting.opened == n
    halfway = FakeTasks(parts=[Said("Hel"), None])
    sent = asyncio.run(hang_up(halfway, 1 + 2 * n, n, stream=True))
    assert b"Hel" in b"".join(message.get("body", b"") for message in sent)
    assert (halfway.opened, halfway.closed) == (n, n)
