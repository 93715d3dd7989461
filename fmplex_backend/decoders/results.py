"""Typed results of a task; `Task.predict` and `Client.predict` return the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Result:
    """Base of all: frozen dataclasses, one for each item."""

    __slots__ = ()
    truncated: bool  # whether the item was longer than the backbone reads

    def shown(self) -> str:
        """In a line, for people; "" where its kind is written by the command line."""
        return ""

    def draw(self, axes: Any, item: Any, after: Any = None) -> bool:
        """Draw it on matplotlib's axes, with its item and what came after that; False where its kind has no picture."""
        return False


@dataclass(frozen=True, slots=True)
class Label(Result):
    """One of several labels, or "" for an item that the task rejects.

    `scores` are probabilities, or cosines of a similarity task; `confidence` tells whether the item is one that the
    task knows, 0 to 1, and is None where the task does not say.
    """

    label: str
    scores: Mapping[str, float]
    truncated: bool = False
    confidence: float | None = None

    @property
    def rejected(self) -> bool:
        """Whether the item is none that the task knows."""
        return not self.label

    @property
    def score(self) -> float:
        """The score of `label`; the highest one of a rejected item."""
        return max(self.scores.values()) if self.rejected else self.scores[self.label]


@dataclass(frozen=True, slots=True)
class Labels(Result):
    """Those of several labels that are over their thresholds, best first; `scores` has the others too."""

    labels: tuple[str, ...]
    scores: Mapping[str, float]
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Values(Result):
    """The numbers of a regression: [outputs]."""

    values: npt.NDArray[np.float32]
    truncated: bool = False

    @property
    def value(self) -> float:
        """The number of a task that has one output; raises ValueError for more."""
        return float(self.values.item())


@dataclass(frozen=True, slots=True, eq=False)
class Vector(Result):
    """An embedding: [h]."""

    vector: npt.NDArray[np.float32]
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Span:
    """The characters [start, end) of a text; `score` is the lowest of its tokens."""

    text: str
    label: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class Spans(Result):
    """The labelled spans of a text, in order; B- and I- tags of one span are joined, O is left out."""

    spans: tuple[Span, ...]
    truncated: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Raw(Result):
    """The output tensors of a task whose decoder is a package's own."""

    outputs: Mapping[str, Array]
    truncated: bool = False


def strings(tensor: Array) -> list[str]:
    """The strings of a BYTES tensor, in its flat order."""
    return [item.decode() if isinstance(item, bytes) else str(item) for item in tensor.ravel().tolist()]


def scores_by_label(labels: Sequence[str], scores: Array) -> dict[str, float]:
    """One item's scores by label, or by 0, 1, ... where the task's entry lists no labels."""
    numbers = [float(score) for score in scores]
    return dict(zip(labels or map(str, range(len(numbers))), numbers, strict=True))
