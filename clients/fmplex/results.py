"""What a task says to one text, as Python objects; the same from `Task.predict` and from `Client.predict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fmplex.answers import strings

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Label:
    """One of several labels; `scores` are probabilities, or cosines of a similarity task."""

    label: str
    scores: Mapping[str, float]
    truncated: bool = False

    @property
    def score(self) -> float:
        """Of the label."""
        return self.scores[self.label]


@dataclass(frozen=True, slots=True)
class Labels:
    """Any number of labels, best first; `scores` has all that the task knows."""

    labels: tuple[str, ...]
    scores: Mapping[str, float]
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Values:
    """Numbers: [outputs]."""

    values: npt.NDArray[np.float32]
    truncated: bool = False

    @property
    def value(self) -> float:
        """The number of a task that has one."""
        return float(self.values.item())


@dataclass(frozen=True, slots=True, eq=False)
class Vector:
    """An embedding: [h]."""

    vector: npt.NDArray[np.float32]
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of the text: characters [start, end), the lowest score of its tokens."""

    text: str
    label: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class Spans:
    """What was found in a text, in order; B- and I- tags of one piece are joined, O is left out."""

    spans: tuple[Span, ...]
    truncated: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Raw:
    """The output tensors of a task whose decoder is a package's own."""

    outputs: Mapping[str, Array]
    truncated: bool = False


Result = Label | Labels | Values | Vector | Spans | Raw


def results(kind: str, labels: Sequence[str], texts: Sequence[Any], outputs: Mapping[str, Array]) -> list[Result]:
    """A request's output tensors (batch first) -> one result a text. Without labels, scores are named 0, 1, ..."""
    return [
        result(kind, labels, text, {name: value[row] for name, value in outputs.items()})
        for row, text in enumerate(texts)
    ]


def result(kind: str, labels: Sequence[str], text: str, outputs: Mapping[str, Array]) -> Result:
    """One text's."""
    truncated = bool(outputs["TRUNCATED"].any()) if "TRUNCATED" in outputs else False
    if kind == "embedding":
        return Vector(outputs["EMBEDDING"], truncated)
    if kind == "regression":
        return Values(outputs["SCORES"], truncated)
    if kind == "token-classification":
        return Spans(tuple(spans(labels, text, outputs)), truncated)
    if kind in ("classification", "similarity", "multi-label"):
        numbers = [float(number) for number in outputs["SCORES"]]
        names = labels or [str(number) for number in range(len(numbers))]
        scores = dict(zip(names, numbers, strict=True))
        said = tuple(label for label in strings(outputs["LABEL"]) if label)
        return Labels(said, scores, truncated) if kind == "multi-label" else Label(said[0], scores, truncated)
    return Raw({name: value for name, value in outputs.items() if name != "TRUNCATED"}, truncated)


def spans(labels: Sequence[str], text: str, outputs: Mapping[str, Array]) -> list[Span]:
    """Token by token -> pieces of the text; a B- begins one, an I- of the same kind goes on."""
    found: list[Span] = []
    tags, offsets = strings(outputs["LABEL"]), outputs["OFFSETS"].tolist()
    best = outputs["SCORES"].max(axis=-1) if len(tags) else []
    for tag, (start, end), score in zip(tags, offsets, best, strict=True):
        kind = tag.removeprefix("B-").removeprefix("I-")
        if tag in ("", "O") or start >= end:
            continue
        last = found[-1] if found else None
        between = text[last.end : start] if last else ""
        joins = between == "" or (not tag.startswith("B-") and between.isspace())
        if last and last.label == kind and joins:
            lowest = min(last.score, float(score))
            found[-1] = Span(text[last.start : end], kind, last.start, end, lowest)
        else:
            found.append(Span(text[start:end], kind, start, end, float(score)))
    return found


def kind_of(outputs: Sequence[str]) -> str:
    """The decoder behind a task that does not say it, by what it gives."""
    if "EMBEDDING" in outputs:
        return "embedding"
    if "OFFSETS" in outputs:
        return "token-classification"
    if "LABEL" in outputs:
        return "classification"
    return "regression" if "SCORES" in outputs else "plugin"
