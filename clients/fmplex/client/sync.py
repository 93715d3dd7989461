"""Asks tasks on a server, over gRPC or HTTP: texts in, Python objects out."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from types import TracebackType
from typing import Any, TypeVar

import gevent
import gevent.ssl
import grpc
import rapidjson
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from geventhttpclient.response import HTTPParseError
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from fmplex.client.base import BaseClient, Outputs
from fmplex.client.paths import BlockingConnections
from fmplex.client.problems import not_triton
from fmplex.client.streams import CHANNEL_OPTIONS, error_in, grpc_error, metadata, needs_grpc
from fmplex.client.transport import Transport
from fmplex.client.wire import Address, Interface, parameters_of
from fmplex_backend.decoders.results import Result
from fmplex_backend.errors import TaskProblem
from fmplex_backend.status import BackboneStatus, TaskStatus

THREADS = 16  # calls of `submit` at a time
CONNECT_S = 60.0  # for one address of a host
GRACE_S = 0.05
TIME_IS_OVER = "the call's time is over"
T = TypeVar("T")


class Client(BaseClient):
    """A server.

    Args:
        url: "localhost:8001" for gRPC, "http://localhost:8000" for HTTP (grpcs:// and https:// with TLS).
        timeout: seconds for a whole call: the look-up of the task's interface, retries and the backoff between them
            included. None for no limit.
        retries: how often a call is sent again while the task's queue is full, the server answers UNAVAILABLE or the
            connection breaks. None: until its deadline; without a deadline, or where nobody has ever answered at this
            address, 4 times.
        headers: go with every call.
        control_key: of a server whose models are to be loaded, unloaded or listed; by default FMPLEX_CONTROL_KEY, else
            the one that `fmplex serve` keeps on this host for the user who started it.

    A call's own `timeout` comes before the client's. Calls raise DeadlineExceeded, Busy or Unreachable after all
    retries, or ServerProblem with the server's message. Threads may share a client over gRPC; over HTTP each needs
    its own.
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        timeout: float | None = None,
        retries: int | None = None,
        headers: dict[str, str] | None = None,
        control_key: str | None = None,
    ) -> None:
        super().__init__(url, timeout=timeout, retries=retries, headers=headers, control_key=control_key)
        self._threads = ThreadPoolExecutor(THREADS, "fmplex-client")

    def _connect(self, address: Address) -> Transport:
        return HttpTransport(address) if address.http else GrpcTransport(address)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel submitted calls that have not begun, wait for those that have, and close the connection."""
        self._threads.shutdown(cancel_futures=True)
        run(self._transport.close())

    # -- inference

    def predict(
        self,
        task: str,
        texts: str | Sequence[Any],
        *,
        timeout: float | None = None,
        slo_ms: float | None = None,
        parameters: Mapping[str, Any] | None = None,
        request_id: str = "",
    ) -> list[Result]:
        """One result for each text, or row of numbers; those beyond the task's batch size go in further requests.

        Of a group each is an `Answers`: a dict of its tasks' results, with the error in the place of one that failed.
        Raises TaskProblem where the task takes other rows than these.

        Args:
            slo_ms: the latency objective, in the place of the task's.
            parameters: of the requests, as the task's family takes them: {"temperature": 0} of a language model.
            request_id: a canary's part of the requests is chosen by it: the same one gets the same version each time.
                All requests of the call have it.
        """
        return run(self._predict(task, texts, self._deadline(timeout), parameters_of(slo_ms, parameters), request_id))

    def submit(self, task: str, texts: str | Sequence[Any], *, timeout: float | None = None) -> Future[list[Result]]:
        """`predict` in a thread; the timeout runs from here. The future's `cancel` stops what has not begun."""
        if self._http:
            raise TaskProblem("submit needs gRPC: an HTTP connection is for one thread. Use Client('host:8001')")
        deadline = self._deadline(timeout)
        return self._threads.submit(lambda: run(self._predict(task, texts, deadline, {})))

    def stream(
        self,
        task: str,
        item: Any,
        *,
        timeout: float | None = None,
        slo_ms: float | None = None,
        parameters: Mapping[str, Any] | None = None,
        request_id: str = "",
    ) -> Iterator[Result]:
        """The result of each part of the reply to one item, as it comes; one result where a task answers in one part.

        The timeout bounds the whole stream. An iterator that is closed, or not used up, cancels the request. Raises
        as `predict` does, in the place of the part that did not come.
        """
        parts = self._stream(task, item, self._deadline(timeout), parameters_of(slo_ms, parameters), request_id)
        try:
            while True:
                try:
                    part = run(anext(parts))
                except StopAsyncIteration:
                    return
                yield part
        finally:
            run(parts.aclose())

    def outputs(
        self,
        task: str,
        texts: str | Sequence[Any],
        *,
        timeout: float | None = None,
        usage: bool = False,
        parameters: Mapping[str, Any] | None = None,
    ) -> list[Outputs]:
        """The output tensors of each text, without the batch dimension.

        Args:
            usage: with the receipt, `usage`: int64 [queue_us, compute_us, batch_items].
        """
        return run(self._outputs(task, texts, self._deadline(timeout), parameters_of(None, parameters), usage))

    def interface(self, task: str, *, timeout: float | None = None) -> Interface:
        """A task's kind, labels, input and outputs; the server is asked once."""
        return run(self._interface(task, self._deadline(timeout)))

    # -- model control

    def tasks(self, *, timeout: float | None = None) -> dict[str, TaskStatus]:
        """How each task of the server is, by name: served or refused, and why.

        The server's index is read for it, which a server with a control key keeps to those who have the key.
        """
        return run(self._tasks(self._deadline(timeout)))

    def status(
        self, backbone: str, task: str = "", *, timeout: float | None = None, prefetch: bool = False
    ) -> BackboneStatus:
        """What a backbone tells of itself and of all its tasks, at once.

        With a task's name it tells of that one alone, after it has read the model repository again.

        Args:
            prefetch: let it also read the version of this task, which is on another backbone and about to be bound to
                this one, and keep its tag for it; `prefetched` and `reserved` say what it found.
        """
        return run(self._status(backbone, task, self._deadline(timeout), prefetch=prefetch))

    def ready(self, model: str = "", *, timeout: float | None = None) -> bool:
        """Whether the server has loaded a task or a backbone; a task may be refused nevertheless: see `tasks`.

        Without a name it is whether the server itself answers, and is ready.
        """
        return run(self._ready(model, self._deadline(timeout)))

    def load(self, task: str, *, timeout: float | None = None) -> None:
        """Let the server take up what changed on disk; a server that polls does so by itself.

        Raises ServerProblem, with the reason, where the backbone refuses the task or its new version.
        """
        run(self._load(task, self._deadline(timeout)))

    def unload(self, task: str, *, timeout: float | None = None) -> None:
        """Let the server drop a task; a server that polls does so once its directory is gone."""
        run(self._control("unload_model", task, self._deadline(timeout)))

    def wait_for(self, task: str, condition: Callable[[], bool], timeout: float) -> None:
        """Poll until `condition` holds; its ServerProblems mean not yet.

        Raises DeadlineExceeded with the last of them. What `condition` asks of the server has a timeout of its own.
        """

        async def holds() -> bool:
            return condition()

        run(self._wait_for(task, holds, timeout))


def run(steps: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine whose transport blocks, so that nothing in it suspends."""
    try:
        steps.send(None)
    except StopIteration as finished:
        result: T = finished.value
        return result
    steps.close()
    raise AssertionError("a blocking transport has suspended")


class BlockingTransport:
    """Time and order of calls for a client that blocks."""

    clock = staticmethod(time.monotonic)

    async def sleep(self, seconds: float) -> None:
        """Block the thread."""
        time.sleep(seconds)

    async def gather(self, calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """One after the other."""
        return [await call for call in calls]


class GrpcTransport(BlockingTransport):
    """One channel; gRPC itself keeps the time."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._client: Any = grpcclient.InferenceServerClient(
            address.host, ssl=address.ssl, channel_args=CHANNEL_OPTIONS
        )

    @cached_property
    def _streams(self) -> grpc.Channel:
        """A channel for streams: tritonclient has one stream at a time on its own."""
        if self._address.ssl:
            return grpc.secure_channel(self._address.host, grpc.ssl_channel_credentials(), CHANNEL_OPTIONS)
        return grpc.insecure_channel(self._address.host, CHANNEL_OPTIONS)

    async def send(self, method: str, arguments: Mapping[str, Any], timeout: float | None) -> Any:
        """gRPC's DEADLINE_EXCEEDED comes as an InferenceServerException."""
        return getattr(self._client, method)(**arguments, client_timeout=timeout)

    async def stream(
        self, request: Any, headers: Mapping[str, str] | None, timeout: float | None
    ) -> AsyncGenerator[Any, None]:
        """Any number of streams at a time."""
        stub = service_pb2_grpc.GRPCInferenceServiceStub(self._streams)
        call = stub.ModelStreamInfer(iter([request]), timeout=timeout, metadata=metadata(headers))
        failure = None
        try:
            for message in call:
                if failure := error_in(message) or failure:
                    continue
                yield grpcclient.InferResult(message.infer_response)
        except grpc.RpcError as error:
            raise failure or grpc_error(error) from None
        finally:
            call.cancel()
        if failure:
            raise failure

    async def close(self) -> None:
        """Close the channels."""
        self._client.close()
        if "_streams" in vars(self):
            self._streams.close()


class Expired(OSError):
    """A call's limit. geventhttpclient closes the connection for an OSError, not for a bare gevent.Timeout."""


class HttpTransport(BlockingTransport):
    """One connection, kept alive between calls.

    tritonclient's own timeouts are a client's, not a call's, and begin anew with every packet. Its sockets are
    gevent's, so a gevent.Timeout bounds the call as a whole.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._client = self._open()

    def _open(self) -> Any:
        client = httpclient.InferenceServerClient(
            self._address.host,
            ssl=self._address.ssl,
            ssl_context_factory=gevent.ssl.create_default_context,  # the default does not check certificates
            network_timeout=None,
            connection_timeout=CONNECT_S,
        )
        client._client_stub = BlockingConnections(client._client_stub)
        return client

    async def send(self, method: str, arguments: Mapping[str, Any], timeout: float | None) -> Any:
        """A call that runs out of time takes its connection with it: half an exchange may be on it."""
        expiry = gevent.Timeout(timeout, Expired(TIME_IS_OVER))
        # While it connects, geventhttpclient goes on to the host's next address after any OSError.
        last_expiry = gevent.Timeout(None if timeout is None else timeout + GRACE_S)
        try:
            with last_expiry, expiry:
                return getattr(self._client, method)(**arguments)
        except Expired:
            pass
        except InferenceServerException as error:  # also where tritonclient could not read an error to its end
            if TIME_IS_OVER not in str(error):
                raise
        except gevent.Timeout as raised:
            if raised is not last_expiry:  # it is the caller's
                raise
        except rapidjson.JSONDecodeError:
            raise not_triton(self._address) from None
        except (HTTPParseError, TimeoutError) as error:  # hung up during the answer; no connection within CONNECT_S
            raise ConnectionError(str(error)) from None
        self._client.close()
        self._client = self._open()
        raise TimeoutError

    def stream(
        self, request: Any, headers: Mapping[str, str] | None, timeout: float | None
    ) -> AsyncGenerator[Any, None]:
        """Raises TaskProblem."""
        raise needs_grpc(request.model_name)

    async def close(self) -> None:
        """Close the connection."""
        self._client.close()
