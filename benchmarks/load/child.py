"""A process of its own that answers a line of JSON on stdin with one on stdout: the first line sets it up."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from typing_extensions import Self

END_S = 30
SHOWN_CHARACTERS = 2000


class Child:
    """The process, idle between lines.

    Args:
        setup: its first line.
        variables: of its environment, beside this one's.
    """

    module: ClassVar[str]  # what it runs, as `python -m` names it

    def __init__(self, setup: Mapping[str, Any], variables: Mapping[str, str] | None = None) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in _end
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **(variables or {})},
        )
        self.ask(setup)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, traceback: TracebackType | None) -> None:
        self._end()

    def ask(self, message: Mapping[str, Any]) -> Any:
        """The answer to a line; raises RuntimeError, with the end of its stderr, where the process has ended."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # it has ended: no answer comes
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        if answer := self._process.stdout.readline():
            return json.loads(answer)
        raise RuntimeError(f"{self.module} has ended:\n{self._end()[-SHOWN_CHARACTERS:]}")

    def _end(self) -> str:
        """End it; what it has written to stderr."""
        if self._errors.closed:
            return ""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # it has ended, and its line was not read
            self._process.stdin.close()
        self._process.wait(END_S)
        self._process.stdout.close()
        with self._errors:
            self._errors.seek(0)
            return self._errors.read()
