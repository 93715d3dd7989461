"""Whether the server has a model ready, as it says over HTTP.

`pb_utils.is_model_ready` holds the interpreter's lock until the server has answered, some 0.3 ms, in which no other
thread of the backbone runs; and it is asked for requests one by one, of each model that claims their tag. A socket lets
the others run. An HTTP client of a library takes about as long itself as that call, so what the protocol needs for a
status is written here.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO
from urllib.parse import quote

from fmplex_backend.serving.asked_server import AskedServer

ASK_S = 0.25  # such an answer takes part of a millisecond
READY, NOT_READY = (200,), (400, 404)
KEPT_S = 0.5  # for which a connection is used
MOST_LINES = 100  # of an answer's head


class _Connection:
    """One that is kept open, with one question at a time."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._socket = socket.create_connection((host, port), timeout=ASK_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers: BinaryIO = self._socket.makefile("rb")

    def status(self, path: str) -> int:
        """Of a GET; raises OSError or ValueError where there is none."""
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
        _, status, *_ = self._answers.readline().split(maxsplit=2)
        length = 0
        for _ in range(MOST_LINES):
            name, _, value = self._answers.readline().partition(b":")
            if not name.strip():
                break
            if name.lower() == b"content-length":
                length = int(value)
        self._answers.read(length)
        return int(status)

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


class Readiness(AskedServer):
    """Asks one server. Any thread.

    A server that is told to end takes no new connections and waits for those there are. So each is used for a short
    time alone; call `close_old` now and then.

    Args:
        address: of the server's HTTP service, HOST:PORT; "" where it is not known.
    """

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(address, clock)
        self._idle: list[tuple[_Connection, float]] = []  # and until when it is used
        self._lock = threading.Lock()

    def is_ready(self, name: str) -> bool | None:
        """None where the server does not say."""
        if not self.may_be_asked:
            return None
        try:
            status = self._status(f"/v2/models/{quote(name, safe='', errors='surrogateescape')}/ready")
        except (OSError, ValueError) as error:
            self.pause(f"whether {name} is ready", str(error))
            return None
        if status not in (*READY, *NOT_READY):
            self.pause(f"whether {name} is ready", f"HTTP status {status}")
            return None
        return status in READY

    def close_old(self) -> None:
        """Close the connections whose time is over."""
        self._close(self.clock())

    def close(self) -> None:
        """Close all of them."""
        self._close(math.inf)

    def _close(self, now: float) -> None:
        with self._lock:
            closed = [each for each, until in self._idle if until <= now]
            self._idle = [(each, until) for each, until in self._idle if until > now]
        for each in closed:
            each.close()

    def _status(self, path: str) -> int:
        self.close_old()
        with self._lock:
            kept = self._idle.pop() if self._idle else None
        if kept is not None:
            with suppress(OSError, ValueError):  # the server may have closed it
                return self._asked(*kept, path)
        host, _, port = self.address.rpartition(":")
        return self._asked(_Connection(host.strip("[]"), int(port)), self.clock() + KEPT_S, path)

    def _asked(self, connection: _Connection, until: float, path: str) -> int:
        try:
            status = connection.status(path)
        except BaseException:
            connection.close()
            raise
        with self._lock:
            self._idle.append((connection, until))
        return status
