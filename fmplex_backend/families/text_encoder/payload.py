"""What a text encoder keeps for a request while it runs."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fmplex_backend.families.shared_rows import Asked
from fmplex_backend.families.text_encoder.tokenizer import Tokens
from fmplex_backend.types import NO_WORK, Finished, Outcome, Request, RowWork, Running, Work

KEY_BYTES = array("i").itemsize  # of a token in a row's key


def row_key(row: Tokens, adapter: object | None) -> Hashable:
    """All that a row's hidden states depend on: tokens, vectors in their place, and the adapter, which is known by
    its identity: a version that is loaded twice has two adapters."""
    vectors = b"" if row.vectors is None else row.vectors.tobytes()
    return id(adapter), array("i", row.ids).tobytes(), vectors


@dataclass(slots=True)
class Payload:
    """A request's rows, and their results so far: its passes fill them in, a portion of the rows at each step."""

    rows: list[Tokens]
    starts: list[int]  # the index of each text's first row: a text of several windows has several rows
    portions: list[list[int]]  # indices of the rows of each step
    keys: list[Hashable]  # of the rows: those with equal keys run once
    step: int = 0
    results: list[Any] = field(default_factory=list)  # per row: [h], or [t, h] for token decoders
    missing: int = 0  # rows of this step without a result yet

    def begin_step(self, request: Request) -> Iterator[Asked[Tokens]]:
        """The rows to run for the request; once more where a pass of this step has broken off."""
        if not self.step:
            self.results = [None] * len(self.rows)
        self.missing = len(self.portions[self.step])
        for index in self.portions[self.step]:
            row = self.rows[index]
            yield Asked(self.keys[index], row, Work.of_row(len(row.ids)), request, index)

    def end_step(self) -> Outcome:
        """Of the request, once no result of the step is missing."""
        self.step = (self.step + 1) % len(self.portions)
        return Running(self.work, next_rows=self.row_work) if self.step else Finished(self.results)

    @property
    def work(self) -> Work:
        """Of this step."""
        return sum((Work.of_row(len(self.rows[index].ids)) for index in self.portions[self.step]), NO_WORK)

    @property
    def row_work(self) -> RowWork:
        """That of each of this step's different rows."""
        return {self.keys[index]: Work.of_row(len(self.rows[index].ids)) for index in self.portions[self.step]}
