"""The server's output: copied on as it comes, and its tail and errors kept for messages of our own."""

from __future__ import annotations

import contextlib
import re
import sys
from collections import deque
from threading import Thread
from typing import IO, TextIO

_ERROR = re.compile(r'^E\d{4} .*?\] "(?P<text>.*)"$')
_MODEL = re.compile(r"'([^']+)'")


class ServerLog:
    """Drains a stream in a thread of its own."""

    def __init__(self, source: IO[bytes], out: TextIO | None = None, lines: int = 60) -> None:
        self._source = source
        self._out = sys.stderr if out is None else out
        self._tail: deque[str] = deque(maxlen=lines)
        self._errors: dict[str, str] = {}
        self._thread = Thread(target=self._drain, name="tritonserver-log", daemon=True)
        self._thread.start()

    def tail(self) -> str:
        """The last lines."""
        return "".join(self._tail)

    def error_of(self, model: str) -> str:
        """The latest error that begins by naming `model`: some never reach the repository index."""
        return self._errors.get(model, "")

    def join(self, timeout: float) -> None:
        """Wait for the end of the stream."""
        self._thread.join(timeout)

    def _drain(self) -> None:
        with self._source:
            for raw in self._source:
                line = raw.decode(errors="replace")
                self._tail.append(line)
                self._remember_error(line)
                # Whatever becomes of our own output, the server must not block on a full pipe.
                with contextlib.suppress(OSError, ValueError):
                    self._out.write(line)
                    self._out.flush()

    def _remember_error(self, line: str) -> None:
        error = _ERROR.match(line.rstrip("\n"))
        named = error and _MODEL.search(error["text"])
        if error and named:
            self._errors[named.group(1)] = error["text"].replace("\\n", "\n")


def one_line(reason: str) -> str:
    """A reason without the stub's "At:" trace, which the log shows in full."""
    return " ".join(reason.split("\n\nAt:\n")[0].split())
