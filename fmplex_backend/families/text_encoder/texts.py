"""The TEXT tensor as texts. No more of a text is read than is needed: before it is decoded and tokenised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmplex_backend.errors import InvalidRequest

CONTINUATION = range(0x80, 0xC0)  # bytes of a UTF-8 character after its first


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A text, or the part of it that is read."""

    text: str
    is_cut: bool = False
    skipped: int = 0  # characters before the part


def excerpt(cell: bytes | str, most: int, *, from_end: bool = False) -> Excerpt:
    """The first (or last) characters of a text that take no more than `most` bytes; raises UnicodeDecodeError.

    Of bytes that are not read, no more is asked than their number of characters.
    """
    if isinstance(cell, str):
        if len(cell) <= most // 4:  # a character has up to four bytes
            return Excerpt(cell)
        cell = cell.encode("utf-8", "surrogatepass")
    if len(cell) <= most:
        return Excerpt(cell.decode("utf-8"))
    if not from_end:
        return Excerpt(cell[: _boundary(cell, most, -1)].decode("utf-8"), is_cut=True)
    place = _boundary(cell, len(cell) - most, 1)
    units = np.frombuffer(cell, dtype=np.uint8, count=place)
    skipped = int(np.count_nonzero((units & 0xC0) != 0x80))
    return Excerpt(cell[place:].decode("utf-8"), is_cut=True, skipped=skipped)


def _boundary(data: bytes, place: int, step: int) -> int:
    """The nearest beginning of a character; the place itself where there is none: then it is not UTF-8."""
    near = range(place, place + 4 * step, step)
    return next((start for start in near if start == len(data) or data[start] not in CONTINUATION), place)


def read_each(value: Any, read: Callable[[bytes | str], Excerpt]) -> list[Excerpt]:
    """The TEXT tensor ([n, 1] of bytes or str), cell by cell; raises InvalidRequest."""
    cells = np.asarray(value, dtype=np.object_).reshape(-1)
    if not len(cells):
        raise InvalidRequest("TEXT holds no items; send a shape of [n, 1] with n at least 1")
    texts = []
    for position, cell in enumerate(cells):
        try:
            texts.append(read(cell if isinstance(cell, bytes) else str(cell)))
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"TEXT[{position}] is not valid UTF-8: {error.reason} at byte {error.start}") from None
    return texts
