"""Names in HTTP paths: the bytes that Triton takes for a model's name."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from fmplex import AsyncClient, Client
from fmplex.client.paths import unescaped

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("escaped", "path"),
    [
        ("v2/models/t%C3%A2che/infer", "v2/models/tâche/infer"),
        ("v2/models/plain/infer", "v2/models/plain/infer"),
        ("v2/models/a%20b/infer", "v2/models/a%20b/infer"),
        ("v2/models/a%0D%0AHost%3A/infer", "v2/models/a%0D%0AHost%3A/infer"),
        ("v2/models/a%3Fb%23/infer", "v2/models/a%3Fb%23/infer"),
        ("v2/models/100%25/infer", "v2/models/100%25/infer"),
    ],
)
def test_what_is_unescaped(escaped: str, path: str) -> None:
    assert unescaped(escaped) == path


class Listener:
    """A server that keeps the first line of each request."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                self.lines.append(connection.recv(65536).partition(b"\r\n")[0])
                connection.sendall(ANSWER)


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.socket.shutdown(socket.SHUT_RDWR)
    listener.socket.close()


def test_both_clients_send_it_so(listener: Listener) -> None:
    async def load() -> None:
        async with AsyncClient(listener.url) as client:
            await client.load("tâche")

    with Client(listener.url) as client:
        client.load("tâche")
    asyncio.run(load())
    load, config = "POST /v2/repository/models/tâche/load HTTP/1.1", "GET /v2/models/tâche/config HTTP/1.1"
    assert listener.lines == [load.encode(), config.encode()] * 2
