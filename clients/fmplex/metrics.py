"""How good a task is on labelled rows. Figures by scikit-learn; entities as CoNLL counts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fmplex.answers import strings
from fmplex.data import Rows, targets

Outputs = Mapping[str, npt.NDArray[Any]]
PLACES = 4


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures by name, and how often each label (row) was taken for each (column)."""

    figures: dict[str, float]
    rows: int
    labels: tuple[str, ...] = ()
    confusion: list[list[int]] = field(default_factory=list)

    @property
    def headline(self) -> str:
        """The name of the main figure."""
        return next(iter(self.figures))

    def __getitem__(self, name: str) -> float:
        return self.figures[name]


def evaluate(kind: str, labels: Sequence[str], rows: Rows, outputs: Sequence[Outputs]) -> Evaluation:
    """Compare a task's outputs, one dict a row, with the rows' labels."""
    size = len(outputs[0]["SCORES"]) if kind == "regression" else 1
    wanted = targets(kind, labels, rows, size)
    if kind == "regression":
        return Evaluation(_regression(np.array(wanted), np.stack([each["SCORES"] for each in outputs])), len(rows))
    if kind == "multi-label":
        return Evaluation(_multi_label(labels, wanted, outputs), len(rows), tuple(labels))
    if kind == "token-classification":
        return Evaluation(_tags(labels, rows, wanted, outputs), len(rows), tuple(labels))
    known = {label: number for number, label in enumerate(labels)}
    found = [known[strings(each["LABEL"])[0]] for each in outputs]
    return _classes(labels, wanted, found)


def _classes(labels: Sequence[str], wanted: list[int], found: list[int]) -> Evaluation:
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

    figures = {
        "accuracy": round(float(accuracy_score(wanted, found)), PLACES),
        "macro_f1": round(float(f1_score(wanted, found, average="macro", labels=sorted(set(wanted)))), PLACES),
    }
    matrix = confusion_matrix(wanted, found, labels=range(len(labels))).tolist()
    return Evaluation(figures, len(wanted), tuple(labels), matrix)


def _multi_label(labels: Sequence[str], wanted: list[Any], outputs: Sequence[Outputs]) -> dict[str, float]:
    from sklearn.metrics import f1_score

    said = [set(strings(each["LABEL"])) for each in outputs]
    found = [[int(label in names) for label in labels] for names in said]
    return {
        f"{average}_f1": round(float(f1_score(wanted, found, average=average, zero_division=0.0)), PLACES)
        for average in ("micro", "macro")
    }


def _regression(wanted: npt.NDArray[Any], found: npt.NDArray[Any]) -> dict[str, float]:
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    figures = {"mae": mean_absolute_error(wanted, found), "rmse": root_mean_squared_error(wanted, found)}
    if len(wanted) > 1:
        figures["r2"] = r2_score(wanted, found)
    return {name: round(float(value), PLACES) for name, value in figures.items()}


def _tags(labels: Sequence[str], rows: Rows, wanted: list[list[int]], outputs: Sequence[Outputs]) -> dict[str, float]:
    """A word's tag is its first token's; a word beyond the cut-off is outside of every name."""
    found = [word_tags(words, each) for words, each in zip(rows.words, outputs, strict=True)]
    named = [[labels[number] for number in row] for row in wanted]
    right = sum(a == b for one, two in zip(named, found, strict=True) for a, b in zip(one, two, strict=True))
    figures = {"accuracy": right / max(1, sum(map(len, named)))}
    if any(label.startswith(("B-", "I-")) for label in labels):
        figures = {"entity_f1": entity_f1(found, named)} | figures
    return {name: round(value, PLACES) for name, value in figures.items()}


def word_tags(words: Sequence[tuple[int, int]], outputs: Outputs) -> list[str]:
    """The tag of the first token inside each word."""
    tokens = list(zip(strings(outputs["LABEL"]), outputs["OFFSETS"].tolist(), strict=True))
    return [
        next((tag for tag, (first, last) in tokens if tag and start <= first < end and last > first), "O")
        for start, end in words
    ]


def entity_spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(kind, first word, word after the last) of every entity; an I- that continues none begins one."""
    spans = set()
    kind, start = "", 0
    for at, tag in enumerate([*tags, "O"]):
        if kind and tag != f"I-{kind}":
            spans.add((kind, start, at))
            kind = ""
        if not kind and tag != "O":
            kind, start = tag[2:], at
    return spans


def entity_f1(found: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> float:
    """F1 over the entities of all texts together: kind and both ends have to agree."""
    hits = total = 0
    for one, two in zip(found, wanted, strict=True):
        here, there = entity_spans(one), entity_spans(two)
        hits += len(here & there)
        total += len(here) + len(there)
    return 2 * hits / total if total else 0.0
