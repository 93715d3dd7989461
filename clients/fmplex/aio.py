"""The client for asyncio; cancelling a call's task tells the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any

import numpy.typing as npt
import tritonclient.grpc.aio as grpcclient
import tritonclient.http.aio as httpclient
from google.protobuf import json_format
from tritonclient.utils import InferenceServerException

from fmplex.client import UNLIMITED_S, _unreachable
from fmplex.errors import DeadlineExceeded
from fmplex.results import Result, results
from fmplex.wire import Address, Interface, asked, portions, problem, waits, worth_another_try


class AsyncClient:
    """A server; see `Client` for the arguments. The parts of a large request go side by side."""

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        timeout: float | None = None,
        retries: int = 4,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.url, self.timeout, self.retries, self.headers = url, timeout, retries, headers
        address = Address.of(url)
        self._module: Any = httpclient if address.http else grpcclient
        self._client: Any = self._module.InferenceServerClient(address.host, ssl=address.ssl)
        self._http = address.http
        self._interfaces: dict[str, Interface] = {}

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connection up."""
        await self._client.close()

    async def predict(
        self, task: str, texts: str | Sequence[Any], *, timeout: float | None = None, slo_ms: float | None = None
    ) -> list[Result]:
        """What a task says to each text; raises as `Client.predict` does."""
        several = [texts] if isinstance(texts, str) else list(texts)
        seconds = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + (10 * UNLIMITED_S if seconds is None else seconds)
        about = await self.interface(task)
        parts = list(portions(several, about.max_batch_size))
        answers = await asyncio.gather(*(self._infer(about, part, deadline, slo_ms) for part in parts))
        return [
            each
            for part, outputs in zip(parts, answers, strict=True)
            for each in results(about.kind, about.labels, part, outputs)
        ]

    async def interface(self, task: str) -> Interface:
        """A task's kind, labels and outputs, asked of the server once."""
        if task not in self._interfaces:
            seconds = 10 * UNLIMITED_S if self.timeout is None else self.timeout
            answer = await self._tried(
                lambda: self._client.get_model_config(task, headers=self.headers), time.monotonic() + seconds
            )
            document = (
                answer if self._http else json_format.MessageToDict(answer.config, preserving_proto_field_name=True)
            )
            self._interfaces[task] = Interface.of(document)
        return self._interfaces[task]

    async def _infer(
        self, about: Interface, rows: Sequence[Any], deadline: float, slo_ms: float | None
    ) -> dict[str, npt.NDArray[Any]]:
        options = asked(self._module, about, rows, slo_ms) | {"headers": self.headers}
        answer = await self._tried(lambda: self._client.infer(**options), deadline)
        return {name: answer.as_numpy(name) for name in about.outputs}

    async def _tried(self, send: Callable[[], Awaitable[Any]], deadline: float) -> Any:
        for wait in (*waits(self.retries), None):
            left = deadline - time.monotonic()
            try:
                return await asyncio.wait_for(_awaited(send), min(left, 10 * UNLIMITED_S))
            except asyncio.TimeoutError:
                raise DeadlineExceeded(f"{self.url}: no answer within the time given") from None
            except InferenceServerException as error:
                if wait is None or not worth_another_try(error):
                    raise problem(error, self.url) from None
            except OSError as error:  # HTTP's transport raises its own
                if wait is None:
                    raise _unreachable(self.url, error) from None
            await asyncio.sleep(min(wait, max(0.0, deadline - time.monotonic())))
        raise AssertionError("the last try returns or raises")


async def _awaited(send: Callable[[], Awaitable[Any]]) -> Any:
    return await send()
