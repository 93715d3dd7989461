"""tritonserver's output: forwarded line by line; its last lines and errors are kept for error messages.

On a machine without a GPU, errors that only say so are left out.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import IO, TextIO

ERRORS = 500  # how many are kept, the latest ones

_TRITONS = re.compile(r"^[IWEF]\d{4} ")  # a line of Triton's own: those of its libraries may come before
_ERROR = re.compile(r'^E\d{4} .*?\] "(?P<text>.*)"$')
_MODEL = re.compile(r"'([^']+)'")
# What Triton calls an error on a machine that has no GPU: at every start, and at every load of an ensemble.
_OF_NO_GPU = re.compile(
    r"^E\d{4} .*? (ensemble_scheduler\.cc:\d+\] \"unable to create stream for "
    r"|server\.cc:\d+\] \"CudaDriverHelper has not been initialized)"
)
_GPU_DEVICES = ("nvidia*", "dxg")  # dxg: Windows' subsystem for Linux


def has_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether this machine, or container, has a GPU of NVIDIA's, with a driver that works or not."""
    return any(any(devices.glob(pattern)) for pattern in _GPU_DEVICES)


class ServerLog:
    """Reads a stream to its end, in a thread of its own; calls `when_it_runs` at Triton's first line."""

    def __init__(
        self,
        source: IO[bytes],
        out: TextIO | None = None,
        lines: int = 60,
        when_it_runs: Callable[[], object] = lambda: None,
    ) -> None:
        self._source = source
        self._when_it_runs = when_it_runs
        self._runs = False
        self._out = sys.stderr if out is None else out
        self._tail: deque[str] = deque(maxlen=lines)
        self._errors: deque[tuple[str, str]] = deque(maxlen=ERRORS)  # (the first name in quotes, text)
        self._without_gpu = not has_gpu()
        self._thread = Thread(target=self._drain, name="tritonserver-log", daemon=True)
        self._thread.start()

    def tail(self) -> str:
        """The last `lines` lines of output."""
        return "".join(self._tail)

    def error_of(self, model: str) -> str:
        """The latest error about `model`: some never reach the repository index.

        Triton's errors name their model first and in quotes, or later and without: "unexpected platform type '' for
        spam". A later name in quotes is another model's, e.g. one that this model depends on.
        """
        errors = list(self._errors)[::-1]
        unquoted = re.compile(rf"(?<![\w.'-]){re.escape(model)}(?![\w'-])")
        quoted = (text for name, text in errors if name == model)
        anywhere = (text for _, text in errors if unquoted.search(text))
        return next(quoted, "") or next(anywhere, "")

    def join(self, timeout: float) -> None:
        """Wait for the end of the stream."""
        self._thread.join(timeout)

    def _drain(self) -> None:
        with self._source:
            for raw in self._source:
                line = raw.decode(errors="replace")
                if not self._runs and _TRITONS.match(line):
                    self._runs = True
                    self._when_it_runs()
                if self._without_gpu and _OF_NO_GPU.match(line):
                    continue
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
