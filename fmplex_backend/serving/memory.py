"""Gives memory back to the system that reading a task's files took."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Return what malloc holds and nobody uses; nothing where malloc is not glibc's.

    Files and tensors of some megabytes come out of malloc's heap, which keeps what was freed for the next pass. That
    one takes its blocks from the system again and is some percent slower, so this is for large files only.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
