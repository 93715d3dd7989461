"""What tensors take of memory, and memory that is given back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any


def bytes_of(array: Any) -> int:
    """Of a tensor; the strings of one with dtype object are counted, too."""
    size: int = array.nbytes
    return size + sum(map(len, array.flat)) if array.dtype.hasobject else size


def give_back() -> None:
    """Return what malloc holds and nobody uses; nothing where malloc is not glibc's.

    Files and tensors of some megabytes come out of malloc's heap, which keeps what was freed for the next pass. That
    one takes its blocks from the system again and is some percent slower, so this is for large files only.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
