"""Serves OpenAI's API in the foreground of a process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn

from fmplex_controller.openai.app import make_app
from fmplex_controller.openai.options import OpenAiOptions
from fmplex_controller.openai.tasks import Tasks, TritonTasks

GRACE_S = 3  # for streams that go on when it is told to end


def server_of(triton: str, options: OpenAiOptions) -> uvicorn.Server:
    """uvicorn, not started yet.

    Args:
        triton: the address of gRPC.
    """

    @asynccontextmanager
    async def open_tasks() -> AsyncIterator[Tasks]:
        tasks = TritonTasks(triton, options.timeout_s)
        try:
            yield tasks
        finally:
            await tasks.close()

    config = uvicorn.Config(
        make_app(open_tasks, options),
        host=options.host.strip("[]"),
        port=options.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    return uvicorn.Server(config)
