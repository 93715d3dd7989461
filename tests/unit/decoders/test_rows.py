"""Labels of rows as a decoder's targets; what cannot be read names the row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fmplex import TaskProblem
from fmplex.data import rows as rows_module
from fmplex_backend.decoders import KINDS
from fmplex_backend.decoders.rows import Rows, label_set, tags_of
from fmplex_backend.families.text_encoder.inputs import TEXT

TEXTS, LABELS = ["one", "two", "three"], ["a", "b", "a"]


def rows_of(data: Any, labels: Any = None, **names: Any) -> Rows:
    return rows_module.rows_of(data, labels, TEXT, **names)


def targets(kind: str, labels: list[str], rows: Rows, outputs: int = 1) -> list[Any]:
    decoder: Any = KINDS[kind]
    made = decoder(outputs=outputs) if kind == "regression" else decoder(labels=labels)
    found: list[Any] = made.targets(rows)
    return found


def test_targets_of_every_kind() -> None:
    assert targets("classification", ["a", "b"], rows_of(TEXTS, LABELS)) == [0, 1, 0]
    assert targets("classification", ["a", "b"], rows_of(TEXTS, [0, 1, 0])) == [0, 1, 0]
    assert targets("multi-label", ["a", "b"], rows_of(TEXTS, ["a|b", "", ["b"]])) == [[1, 1], [0, 0], [0, 1]]
    assert targets("regression", [], rows_of(TEXTS, ["1.5", 2, np.float32(3)])) == [[1.5], [2.0], [3.0]]
    assert targets("regression", [], rows_of(TEXTS, [[1, 2]] * 3), 2) == [[1.0, 2.0]] * 3


@pytest.mark.parametrize(
    ("kind", "labels", "rows", "match"),
    [
        ("classification", ["a", "b"], (TEXTS, ["a", "c", "b"]), "row 1: 'c' is none of the labels a, b"),
        ("classification", ["a", "b"], (TEXTS, [0, 1, 2]), "row 2: 2 is none"),
        ("multi-label", ["a"], (TEXTS, ["a", "a|z", ""]), "row 1: 'z'"),
        ("regression", [], (TEXTS, [1, "much", 3]), "row 1: 'much' is not 1 finite number"),
        ("regression", [], (TEXTS, [1, float("inf"), 3]), "row 1"),
        ("token-classification", ["O"], (TEXTS, ["O", "O", "O"]), "tags belong to words"),
        ("token-classification", ["O"], ([["a", "b"]], [["O"]]), "2 words and 1 tags"),
    ],
)
def test_labels_that_cannot_be_read(kind: str, labels: list[str], rows: Any, match: str) -> None:
    with pytest.raises(TaskProblem, match=match):
        targets(kind, labels, rows_of(*rows))


def test_several_labels_of_a_row() -> None:
    assert label_set("a | b||c ") == ["a", "b", "c"]
    assert label_set(("a", 2)) == ["a", "2"]
    assert tags_of("O  B-X") == tags_of(["O", "B-X"]) == ["O", "B-X"]
