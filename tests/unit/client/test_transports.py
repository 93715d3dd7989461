"""The clients' own transports against sockets: servers that never answer, hang up, or trickle."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gevent
import pytest

from fmplex import AsyncClient, Client, DeadlineExceeded, TaskProblem, Unreachable
from fmplex.client.aio import AsyncioTransport
from fmplex.client.sync import HttpTransport, run
from fmplex.client.wire import Address, Interface

TIMEOUT_S, SLACK_S = 0.2, 5.0
CALLS = {
    "predict": ("predict", "task", ["a"]),
    "stream": ("stream", "task", "a"),
    "outputs": ("outputs", "task", ["a"]),
    "interface": ("interface", "task"),
    "tasks": ("tasks",),
    "load": ("load", "task"),
    "unload": ("unload", "task"),
}
DOCUMENT = json.dumps([{"name": "task", "state": "READY"}]).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(DOCUMENT) + DOCUMENT


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections (the kernel does, before `accept`) and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def call(kind: type[Client] | type[AsyncClient], url: str, method: str, *arguments: Any, **options: Any) -> Any:
    """Of a fresh client."""

    async def awaited() -> Any:
        async with AsyncClient(url, retries=0) as client:
            answer = getattr(client, method)(*arguments, **options)
            return [part async for part in answer] if method == "stream" else await answer

    if kind is AsyncClient:
        return asyncio.run(awaited())
    with Client(url, retries=0) as client:
        answer = getattr(client, method)(*arguments, **options)
        return list(answer) if method == "stream" else answer


@contextlib.contextmanager
def takes_about(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert 0.9 * seconds <= time.monotonic() - start < seconds + SLACK_S


@pytest.mark.parametrize("arguments", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_silent_server(
    silent: str, kind: type[Client] | type[AsyncClient], scheme: str, arguments: tuple[Any, ...]
) -> None:
    with takes_about(TIMEOUT_S), pytest.raises(DeadlineExceeded, match="no answer within the time given"):
        call(kind, f"{scheme}://{silent}", *arguments, timeout=TIMEOUT_S)


def test_a_silent_server_and_submit(silent: str) -> None:
    with Client(silent) as client, takes_about(TIMEOUT_S):
        error = client.submit("task", "a", timeout=TIMEOUT_S).exception(10)
    assert isinstance(error, DeadlineExceeded)


def test_submit_waits_for_a_thread_on_the_calls_own_time(silent: str) -> None:
    with Client(silent, retries=0) as client:
        client._threads = ThreadPoolExecutor(1)
        first, second = (client.submit("task", "a", timeout=TIMEOUT_S) for _ in range(2))
        with takes_about(TIMEOUT_S):
            assert isinstance(second.exception(10), DeadlineExceeded)
        assert isinstance(first.exception(10), DeadlineExceeded)


STREAMED = Interface("task", "regression", (), ("SCORES",), 8, streams=True)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
class TestStreams:
    """The task is known to answer in parts."""

    def ask(self, kind: type[Client] | type[AsyncClient], url: str, timeout: float) -> Any:
        async def awaited() -> Any:
            async with AsyncClient(url, retries=0) as client:
                client._interfaces["task"] = STREAMED
                return await client.predict("task", "a", timeout=timeout)

        if kind is AsyncClient:
            return asyncio.run(awaited())
        with Client(url, retries=0) as client:
            client._interfaces["task"] = STREAMED
            return client.predict("task", "a", timeout=timeout)

    def test_a_silent_server(self, silent: str, kind: type[Client] | type[AsyncClient]) -> None:
        with takes_about(TIMEOUT_S), pytest.raises(DeadlineExceeded, match="no answer within the time given"):
            self.ask(kind, silent, TIMEOUT_S)

    def test_nobody_listens(self, kind: type[Client] | type[AsyncClient]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            port = gone.getsockname()[1]
        with pytest.raises(Unreachable):
            self.ask(kind, f"127.0.0.1:{port}", 10.0)

    def test_http_has_none(self, kind: type[Client] | type[AsyncClient]) -> None:
        with pytest.raises(TaskProblem, match="'task' answers in parts, and these come over gRPC"):
            self.ask(kind, "http://127.0.0.1:9", 10.0)


def test_submit_needs_grpc() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(TaskProblem, match="needs gRPC"):
        client.submit("task", "a")


class Server:
    """Handles one connection after the other, each as the next of `handlers` says."""

    def __init__(self, *handlers: Callable[[socket.socket, threading.Event], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._handlers = handlers
        self.stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _serve(self) -> None:
        for handler in self._handlers:
            with contextlib.suppress(OSError):
                connection, _ = self._listener.accept()
                with connection:
                    handler(connection, self.stop)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


def stays_silent(connection: socket.socket, stop: threading.Event) -> None:
    stop.wait(60)  # and reads nothing


def answers(connection: socket.socket, stop: threading.Event) -> None:
    while connection.recv(65536):
        connection.sendall(ANSWER)


def hangs_up(connection: socket.socket, stop: threading.Event) -> None:
    connection.recv(65536)


def breaks_off(connection: socket.socket, stop: threading.Event) -> None:
    connection.recv(65536)
    connection.sendall(ANSWER[:30])


def stops_within_an_error(connection: socket.socket, stop: threading.Event) -> None:
    connection.recv(65536)
    connection.sendall(b'HTTP/1.1 500 Internal Server Error\r\nContent-Length: 100\r\n\r\n{"error"')
    stop.wait(60)


def trickles(connection: socket.socket, stop: threading.Event) -> None:
    for byte in ANSWER:
        connection.sendall(bytes([byte]))
        if stop.wait(0.05):
            return


@pytest.mark.parametrize("kind", [Client, AsyncClient])
class TestHttp:
    @pytest.mark.parametrize("handler", [trickles, stops_within_an_error])
    def test_the_limit_is_the_whole_answers(
        self, kind: type[Client] | type[AsyncClient], handler: Callable[[socket.socket, threading.Event], None]
    ) -> None:
        """The first bytes come in time, the answer does not."""
        with Server(handler) as server, takes_about(TIMEOUT_S), pytest.raises(DeadlineExceeded):
            call(kind, f"http://{server.address}", "tasks", timeout=TIMEOUT_S)

    @pytest.mark.parametrize("handler", [hangs_up, breaks_off])
    def test_a_server_that_hangs_up(
        self, kind: type[Client] | type[AsyncClient], handler: Callable[[socket.socket, threading.Event], None]
    ) -> None:
        with Server(*[handler] * 3) as server, pytest.raises(Unreachable):
            call(kind, f"http://{server.address}", "tasks", timeout=10.0)

    def test_nobody_listens(self, kind: type[Client] | type[AsyncClient]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            port = gone.getsockname()[1]
        with pytest.raises(Unreachable):
            call(kind, f"http://127.0.0.1:{port}", "tasks", timeout=10.0)


def speaks_http2(connection: socket.socket, stop: threading.Event) -> None:
    connection.sendall(b"\x00\x00\x18\x04\x00\x00\x00\x00\x00" + bytes(24))  # a gRPC server's first frame
    connection.recv(65536)


def answers_without_json(connection: socket.socket, stop: threading.Event) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("scheme", "handler", "says"),
    [
        ("http", speaks_http2, "does not speak HTTP. If this is its gRPC port, say 127"),
        ("http", answers_without_json, "is not Triton's HTTP endpoint"),
        ("https", hangs_up, "does not speak TLS. Without TLS its address is http://127"),
        ("grpc", hangs_up, "hangs up on gRPC. If this is its HTTP port, say http://127"),
    ],
)
def test_a_server_of_another_kind(
    kind: type[Client] | type[AsyncClient],
    scheme: str,
    handler: Callable[[socket.socket, threading.Event], None],
    says: str,
) -> None:
    with Server(*[handler] * 3) as server, pytest.raises(Unreachable, match=says):
        call(kind, f"{scheme}://{server.address}", "interface", "task", timeout=10.0)


@pytest.mark.parametrize("payload", [10, 16_000_000], ids=["while it reads", "while it sends"])
def test_after_a_timeout_the_connection_is_a_new_one(payload: int) -> None:
    """An answer that comes late is not the next call's."""
    with Server(stays_silent, answers) as server:
        transport = HttpTransport(Address.of(f"http://{server.address}"))
        large = {"model_name": "task", "config": "x" * payload}
        with takes_about(TIMEOUT_S), pytest.raises(TimeoutError):
            run(transport.send("load_model", large, TIMEOUT_S))
        server.stop.set()
        assert run(transport.send("get_model_repository_index", {}, 10.0)) == json.loads(DOCUMENT)
        run(transport.close())


class TriesTheNextAddress:
    """As geventhttpclient connects: an OSError is one address's."""

    def get_model_repository_index(self) -> None:
        for _ in range(2):
            with contextlib.suppress(OSError):
                gevent.sleep(60)

    def close(self) -> None:
        pass


def test_the_limit_is_all_addresses() -> None:
    transport = HttpTransport(Address.of("http://127.0.0.1:9"))
    transport._client = TriesTheNextAddress()
    with takes_about(TIMEOUT_S), pytest.raises(TimeoutError):
        run(transport.send("get_model_repository_index", {}, TIMEOUT_S))
    transport._client = TriesTheNextAddress()
    with takes_about(TIMEOUT_S), gevent.Timeout(TIMEOUT_S, False):  # a caller's own limit is the caller's
        run(transport.send("get_model_repository_index", {}, 60.0))
    run(transport.close())


def test_an_asyncio_error_cancels_its_siblings() -> None:
    ended = []

    async def fails() -> None:
        raise OSError("reset")

    async def lasts() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def both() -> None:
        transport = AsyncioTransport(Address.of("http://127.0.0.1:9"))
        try:
            with pytest.raises(OSError, match="reset"):
                await transport.gather([lasts(), fails()])
            assert ended == [True]
        finally:
            await transport.close()

    asyncio.run(both())
