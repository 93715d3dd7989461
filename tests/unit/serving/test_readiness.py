"""Whether models are ready, as an HTTP server says that is there only for the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fake_family.runtime import FakeClock

from fmplex_backend.serving import readiness
from fmplex_backend.serving.asked_server import PAUSE_S
from fmplex_backend.serving.readiness import KEPT_S, Readiness

STATUS = {"ready": 200, "not%20yet": 400, "none": 404, "closed": 403, "caf%C3%A9": 200}


class Server(ThreadingHTTPServer):
    """Answers as Triton does, and counts."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.connections = 0
        self.closes = False  # after each answer
        self.delay_s = 0.0  # of an answer, so that several are under way
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        time.sleep(self.server.delay_s)
        name = self.path.removeprefix("/v2/models/").removesuffix("/ready")
        body = b'{"error":"unknown model"}' if STATUS[name] != 200 else b""
        self.send_response(STATUS[name])
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.server.closes  # without a word: as one that was idle for long

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(0.0)


@pytest.fixture
def asks(server: Server, clock: FakeClock) -> Iterator[Readiness]:
    asks = Readiness(server.address, clock)
    yield asks
    asks.close()


def test_it_says_which_are_ready(asks: Readiness, server: Server) -> None:
    assert [asks.is_ready(name) for name in ("ready", "not yet", "none", "café", "ready")] == [
        True,
        False,
        False,
        True,
        True,
    ]
    assert server.asked[1] == "/v2/models/not%20yet/ready"
    assert server.connections == 1


def test_threads_that_ask_at_a_time_have_a_connection_each(asks: Readiness, server: Server) -> None:
    server.delay_s = 0.05
    answers: list[bool | None] = []
    threads = [threading.Thread(target=lambda: answers.append(asks.is_ready("ready"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 3
    assert server.connections == 3
    assert asks.is_ready("ready")
    assert server.connections == 3


def test_a_connection_is_closed_after_a_while(asks: Readiness, server: Server, clock: FakeClock) -> None:
    assert asks.is_ready("ready")
    clock.now += KEPT_S / 2
    asks.close_old()
    assert asks.is_ready("ready")
    assert server.connections == 1
    clock.now += KEPT_S
    asks.close_old()
    assert asks.is_ready("ready")
    assert server.connections == 2


def test_a_connection_that_the_server_has_closed_is_made_again(asks: Readiness, server: Server) -> None:
    server.closes = True
    assert [asks.is_ready("ready") for _ in range(3)] == [True] * 3
    assert server.connections == 3


def test_an_odd_answer_is_none_and_nothing_is_asked_for_a_while(
    asks: Readiness, server: Server, clock: FakeClock
) -> None:
    assert asks.is_ready("closed") is None
    assert asks.is_ready("ready") is None
    assert len(server.asked) == 1
    clock.now += PAUSE_S
    assert asks.is_ready("ready") is True


def test_a_server_that_is_away(server: Server, clock: FakeClock) -> None:
    asks = Readiness("127.0.0.1:1", clock)
    assert asks.is_ready("ready") is None
    asks.address = server.address
    clock.now += PAUSE_S
    assert asks.is_ready("ready") is True
    asks.close()


def test_a_server_that_does_not_answer(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(readiness, "ASK_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asks = Readiness(f"127.0.0.1:{silent.getsockname()[1]}", clock)
        assert asks.is_ready("ready") is None
        asks.close()


def test_without_an_address_nothing_is_asked() -> None:
    assert Readiness("").is_ready("ready") is None
