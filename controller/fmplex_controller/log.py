"""The server's output: copied on as it comes, and its tail and errors kept for messages of our own."""

from __future__ import annotations

import contextlib
import re
import sys
from collections import deque
from threading import Thread
from typing import IO, TextIO

ERRORS = 500  # that are remembered

_ERROR = re.compile(r'^E\d{4} .*?\] "(?P<text>.*)"$')
_MODEL = re.compile(r"'([^']+)'")


class ServerLog:
    """Drains a stream in a thread of its own."""

    def __init__(self, source: IO[bytes], out: TextIO | None = None, lines: int = 60) -> None:
        self._source = source
        self._out = sys.stderr if out is None else out
        self._tail: deque[str] = deque(maxlen=lines)
        self._errors: deque[tuple[str, str]] = deque(maxlen=ERRORS)  # (the first name in quotes, text)
        self._thread = Thread(target=self._drain, name="tritonserver-log", daemon=True)
        self._thread.start()

    def tail(self) -> str:
        """The last lines."""
        return "".join(self._tail)

    def error_of(self, model: str) -> str:
        """The latest error about `model`: some never reach the repository index.

        Triton's errors name their model first and in quotes, or further on and without: "unexpected platform type ''
        for spam". A name in quotes further on is another model's, e.g. one that this model depends on.
        """
        errors = list(self._errors)[::-1]
        plain = re.compile(rf"(?<![\w.'-]){re.escape(model)}(?![\w'-])")
        first = (text for name, text in errors if name == model)
        further = (text for _, text in errors if plain.search(text))
        return next(first, "") or next(further, "")

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
        if error:
            named = _MODEL.search(error["text"])
            self._errors.append((named.group(1) if named else "", error["text"].replace("\\n", "\n")))


def one_line(reason: str) -> str:
    """A reason without the stub's "At:" trace, which the log shows in full."""
    return " ".join(reason.split("\n\nAt:\n")[0].split())
