"""The client for asyncio; cancelling a call's asyncio task cancels its requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any, TypeVar

import aiohttp
import grpc.aio
import rapidjson
import tritonclient.grpc.aio as grpcclient
import tritonclient.http.aio as httpclient
from tritonclient.grpc import service_pb2_grpc

from fmplex.client.base import BaseClient, Outputs
from fmplex.client.paths import AsyncioConnections
from fmplex.client.problems import not_triton
from fmplex.client.streams import CHANNEL_OPTIONS, error_in, grpc_error, metadata, needs_grpc
from fmplex.client.transport import Transport
from fmplex.client.wire import Address, Interface, parameters_of
from fmplex_backend.decoders.results import Result
from fmplex_backend.status import BackboneStatus, TaskStatus

T = TypeVar("T")


class AsyncClient(BaseClient):
    """A server; arguments, methods and errors are `Client`'s.

    The requests of a call are sent side by side. Make it inside the event loop that uses it.
    """

    def _connect(self, address: Address) -> Transport:
        return AsyncioTransport(address)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def predict(
        self,
        task: str,
        texts: str | Sequence[Any],
        *,
        timeout: float | None = None,
        slo_ms: float | None = None,
        parameters: Mapping[str, Any] | None = None,
        request_id: str = "",
    ) -> list[Result]:
        """One result for each text, or row of numbers; of a group an `Answers` each."""
        return await self._predict(task, texts, self._deadline(timeout), parameters_of(slo_ms, parameters), request_id)

    def stream(
        self,
        task: str,
        item: Any,
        *,
        timeout: float | None = None,
        slo_ms: float | None = None,
        parameters: Mapping[str, Any] | None = None,
        request_id: str = "",
    ) -> AsyncGenerator[Result, None]:
        """The result of each part of the reply to one item, as it comes; `aclose` cancels the request."""
        return self._stream(task, item, self._deadline(timeout), parameters_of(slo_ms, parameters), request_id)

    async def outputs(
        self,
        task: str,
        texts: str | Sequence[Any],
        *,
        timeout: float | None = None,
        usage: bool = False,
        parameters: Mapping[str, Any] | None = None,
    ) -> list[Outputs]:
        """The output tensors of each text, without the batch dimension; with the receipt, where it is asked for."""
        return await self._outputs(task, texts, self._deadline(timeout), parameters_of(None, parameters), usage)

    async def interface(self, task: str, *, timeout: float | None = None) -> Interface:
        """A task's kind, labels, input and outputs; the server is asked once."""
        return await self._interface(task, self._deadline(timeout))

    async def tasks(self, *, timeout: float | None = None) -> dict[str, TaskStatus]:
        """How each task of the server is, by name: served or refused, and why.

        The server's index is read for it, which a server with a control key keeps to those who have the key.
        """
        return await self._tasks(self._deadline(timeout))

    async def status(self, backbone: str, task: str = "", *, timeout: float | None = None) -> BackboneStatus:
        """What a backbone tells of itself and of all its tasks, at once.

        With a task's name it tells of that one alone, after it has read the model repository again.
        """
        return await self._status(backbone, task, self._deadline(timeout))

    async def ready(self, model: str = "", *, timeout: float | None = None) -> bool:
        """Whether the server has loaded a task or a backbone; a task may be refused nevertheless: see `tasks`.

        Without a name it is whether the server itself answers, and is ready.
        """
        return await self._ready(model, self._deadline(timeout))

    async def load(self, task: str, *, timeout: float | None = None) -> None:
        """Let the server take up what changed on disk; a server that polls does so by itself.

        Raises ServerProblem, with the reason, where the backbone refuses the task or its new version.
        """
        await self._load(task, self._deadline(timeout))

    async def unload(self, task: str, *, timeout: float | None = None) -> None:
        """Let the server drop a task."""
        await self._control("unload_model", task, self._deadline(timeout))

    async def wait_for(self, task: str, condition: Callable[[], Awaitable[bool]], timeout: float) -> None:
        """Poll until the awaited `condition` holds; raises as `Client.wait_for` does."""
        await self._wait_for(task, condition, timeout)


class AsyncioTransport:
    """One gRPC channel, or a pool of HTTP connections."""

    clock = staticmethod(time.monotonic)

    def __init__(self, address: Address) -> None:
        self._address = address
        # aiohttp's limit of a request is lifted: `send` has the call's.
        self._client: Any = (
            httpclient.InferenceServerClient(address.host, ssl=address.ssl, conn_timeout=None)
            if address.http
            else grpcclient.InferenceServerClient(address.host, ssl=address.ssl, channel_args=CHANNEL_OPTIONS)
        )
        if address.http:
            self._client._stub = AsyncioConnections(self._client._stub)

    @cached_property
    def _streams(self) -> grpc.aio.Channel:
        """A channel for streams, made inside the event loop."""
        if self._address.ssl:
            return grpc.aio.secure_channel(self._address.host, grpc.ssl_channel_credentials(), CHANNEL_OPTIONS)
        return grpc.aio.insecure_channel(self._address.host, CHANNEL_OPTIONS)

    async def send(self, method: str, arguments: Mapping[str, Any], timeout: float | None) -> Any:
        """A request that runs out of time is cancelled."""
        try:
            return await asyncio.wait_for(getattr(self._client, method)(**arguments), timeout)
        except asyncio.TimeoutError:  # another class than TimeoutError before Python 3.11
            raise TimeoutError from None
        except aiohttp.ClientError as error:
            raise ConnectionError(str(error)) from None
        except rapidjson.JSONDecodeError:
            raise not_triton(self._address) from None

    async def stream(
        self, request: Any, headers: Mapping[str, str] | None, timeout: float | None
    ) -> AsyncGenerator[Any, None]:
        """Over gRPC; raises TaskProblem over HTTP."""
        if self._address.http:
            raise needs_grpc(request.model_name)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(self._streams)
        call = stub.ModelStreamInfer(iter([request]), timeout=timeout, metadata=metadata(headers))
        failure = None
        try:
            async for message in call:
                if failure := error_in(message) or failure:
                    continue
                yield grpcclient.InferResult(message.infer_response)
        except grpc.RpcError as error:
            raise failure or grpc_error(error) from None
        finally:
            call.cancel()
        if failure:
            raise failure

    async def sleep(self, seconds: float) -> None:
        """Let other asyncio tasks run."""
        await asyncio.sleep(seconds)

    async def gather(self, calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """Side by side; the first error cancels the others and is raised when they have ended."""
        tasks = [asyncio.ensure_future(call) for call in calls]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()
        if "_streams" in vars(self):
            await self._streams.close()
