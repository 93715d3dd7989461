"""HTTP beneath the doors: bodies that are not too long, clients that go away, and server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from fmplex_backend.errors import FmplexError
from fmplex_controller.openai.problems import ApiProblem, of_problem

T = TypeVar("T")
DONE = "data: [DONE]\n\n"


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def read_body(request: Request, most: int) -> bytes:
    """Raises ApiProblem for more bytes than `most`, ClientGone where the client hangs up before it has sent all."""
    body = bytearray()
    too_long = ApiProblem(413, f"The request is longer than {most} bytes: send less at a time")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise too_long
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise too_long
    except ClientDisconnect:
        raise ClientGone from None
    return bytes(body)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; cancels it and raises ClientGone where the client hangs up. The body must have been read."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def events(documents: AsyncGenerator[Any, None], model: str) -> StreamingResponse:
    """A stream of JSON documents. An error in it is the last one: the status is sent long before."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies would gather parts
    return StreamingResponse(_lines(documents, model), media_type="text/event-stream", headers=headers)


async def _lines(documents: AsyncGenerator[Any, None], model: str) -> AsyncIterator[str]:
    async with aclosing(documents):
        try:
            async for document in documents:
                yield f"data: {dumped(document)}\n\n"
        except FmplexError as error:
            yield f"data: {dumped(of_problem(error, model).body)}\n\n"
        yield DONE


def dumped(document: Any) -> str:
    """JSON without blanks."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))
