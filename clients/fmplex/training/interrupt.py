"""Ctrl-C during a training: held back until a step is complete, so that a checkpoint can be written."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A training was interrupted after a complete step; the message says what is saved and how it goes on."""


class InterruptHeld:
    """Within the block Ctrl-C sets `came`; a second one interrupts at once, as outside of it.

    Args:
        wanted: False leaves Ctrl-C as it is. It is also left alone in other threads than the main one, which cannot
            take signals.
    """

    def __init__(self, wanted: bool = True) -> None:
        self.wanted, self.came = wanted, False
        self._former: Any = None

    def __enter__(self) -> InterruptHeld:
        self.wanted = self.wanted and threading.current_thread() is threading.main_thread()
        if self.wanted:
            self._former = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.wanted:
            signal.signal(signal.SIGINT, self._former)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True
