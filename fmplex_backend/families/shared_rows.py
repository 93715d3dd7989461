"""Rows that several requests of a batch ask for run once, and each request gets its result.

A family gives every row a key: all that the row's result depends on before the decoder, and nothing else. Keys are
compared for equality, not by their hashes alone, so what is shared is exactly what each would have got by itself.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from fmplex_backend.types import NO_WORK, Request, Sharing, Work

Row = TypeVar("Row")


class Asked(NamedTuple, Generic[Row]):
    """A row that a request asks for, and its position there."""

    key: Hashable
    row: Row
    work: Work
    request: Request
    position: int


@dataclass(frozen=True, slots=True)
class SharedRow(Generic[Row]):
    """A row that runs, and who asked for it."""

    row: Row
    work: Work
    askers: list[tuple[Request, int]]  # with the position of the row in the request; a request may ask more than once


def unite(asked: Iterable[Asked[Row]]) -> list[SharedRow[Row]]:
    """One row for each key, in the order in which keys come first."""
    united: dict[Hashable, SharedRow[Row]] = {}
    for each in asked:
        if (found := united.get(each.key)) is None:
            found = united[each.key] = SharedRow(each.row, each.work, [])
        found.askers.append((each.request, each.position))
    return list(united.values())


def divide(rows: Iterable[SharedRow[Any]]) -> tuple[list[tuple[Request, Work]], Sharing]:
    """What a pass of these rows is to each request (`Pass.portions`), and what was shared (`Pass.sharing`)."""
    work: dict[Request, Work] = {}
    shared: dict[Request, int] = {}
    saved = 0
    for row in rows:
        sharers = len(row.askers)
        part = row.work.divided(sharers)
        saved += sharers - 1
        for request, _ in row.askers:
            work[request] = work.get(request, NO_WORK) + part
            if sharers > 1:
                shared[request] = shared.get(request, 0) + 1
    return list(work.items()), Sharing(shared, saved)
