"""What the runtime of an encoder keeps for a request while it runs."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from fmplex_backend.families.shared_rows import Asked
from fmplex_backend.types import NO_WORK, Finished, Outcome, Request, RowWork, Running, Work


class Row(Protocol):
    """An input as the backbone takes it."""

    @property
    def length(self) -> int:
        """Tokens."""

    @property
    def key(self) -> Hashable:
        """All that its hidden states depend on, but for the adapter."""

    @property
    def bytes(self) -> int:
        """About what it takes in memory, its key included."""


RowT = TypeVar("RowT", bound=Row)


def row_key(row: Row, adapter: object | None) -> Hashable:
    """All that a row's hidden states depend on. The adapter is known by its identity: a version that is loaded twice
    has two adapters."""
    return id(adapter), row.key


@dataclass(slots=True)
class Payload(Generic[RowT]):
    """A request's rows, and their results so far: its passes fill them in, a portion of the rows at each step."""

    rows: list[RowT]
    starts: list[int]  # the index of each item's first row: e.g. a text of several windows has several rows
    portions: list[list[int]]  # indices of the rows of each step
    keys: list[Hashable]  # of the rows: those with equal keys run once
    step: int = 0
    results: list[Any] = field(default_factory=list)  # per row: [h], or [t, h] for token decoders
    missing: int = 0  # rows of this step without a result yet

    def begin_step(self, request: Request) -> Iterator[Asked[RowT]]:
        """The rows to run for the request; once more where a pass of this step has broken off."""
        if not self.step:
            self.results = [None] * len(self.rows)
        self.missing = len(self.portions[self.step])
        for index in self.portions[self.step]:
            row = self.rows[index]
            yield Asked(self.keys[index], row, Work.of_row(row.length), request, index)

    def end_step(self) -> Outcome:
        """Of the request, once no result of the step is missing."""
        self.step = (self.step + 1) % len(self.portions)
        return Running(self.work, next_rows=self.row_work) if self.step else Finished(self.results)

    @property
    def work(self) -> Work:
        """Of this step."""
        return sum((Work.of_row(self.rows[index].length) for index in self.portions[self.step]), NO_WORK)

    @property
    def row_work(self) -> RowWork:
        """That of each of this step's different rows."""
        return {self.keys[index]: Work.of_row(self.rows[index].length) for index in self.portions[self.step]}
