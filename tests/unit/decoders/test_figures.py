"""Figures of tasks on labelled rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fmplex.data.rows import rows_of as read_rows
from fmplex_backend.decoders import KINDS
from fmplex_backend.decoders.figures import Evaluation
from fmplex_backend.decoders.rows import Rows
from fmplex_backend.decoders.token_classification import entity_f1, entity_spans, word_tags
from fmplex_backend.families.text_encoder.inputs import TEXT


def rows_of(texts: Any, labels: Any) -> Rows:
    return read_rows(texts, labels, TEXT)


def evaluate(kind: str, labels: list[str], rows: Rows, outputs: Any) -> Evaluation:
    decoder: Any = KINDS[kind]
    found: Evaluation = (decoder(labels=labels) if labels else decoder()).figures(rows, outputs)
    return found


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O B-x I-x O", {("x", 1, 3)}),
        ("B-x B-x", {("x", 0, 1), ("x", 1, 2)}),
        ("B-x I-y", {("x", 0, 1), ("y", 1, 2)}),
        ("O I-x", {("x", 1, 2)}),
        ("O O", set()),
    ],
)
def test_entity_spans(tags: str, spans: set[tuple[str, int, int]]) -> None:
    assert entity_spans(tags.split()) == spans


def test_entity_f1_wants_both_ends_and_the_kind() -> None:
    wanted = [["B-x", "I-x", "O"], ["B-y", "O", "B-x"]]
    found = [["B-x", "O", "O"], ["B-y", "O", "B-y"]]
    assert entity_f1(found, wanted) == pytest.approx(2 * 1 / (3 + 3))


def said(*labels: str) -> dict[str, Any]:
    return {"LABEL": np.array(labels, dtype=np.object_)}


def test_classes() -> None:
    rows = rows_of(["a", "b", "c", "d"], ["x", "x", "x", "y"])
    found = evaluate("classification", ["x", "y"], rows, [said("x")] * 4)
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((6 / 7 + 0) / 2, abs=1e-4)
    assert found.confusion == [[3, 0], [1, 0]]
    assert found.headline == "accuracy"


def test_several_labels() -> None:
    rows = rows_of(["a", "b"], [["x", "y"], []])
    found = evaluate("multi-label", ["x", "y"], rows, [said("x", ""), said("y", "")])
    assert found["micro_f1"] == pytest.approx(2 * 1 / (2 + 2))


def test_numbers() -> None:
    rows = rows_of(["a", "b"], [1.0, 3.0])
    found = evaluate("regression", [], rows, [{"SCORES": np.array([2.0])}, {"SCORES": np.array([3.0])}])
    assert found.figures == {"mae": 0.5, "rmse": 0.7071, "r2": 0.5}


def test_a_words_first_token_stands_for_it() -> None:
    outputs = said("B-x", "I-x", "O") | {"OFFSETS": np.array([[0, 2], [2, 5], [6, 7]])}
    assert word_tags([(0, 5), (6, 7), (8, 9)], outputs) == ["B-x", "O", "O"]
    rows = rows_of([["abcde", "f", "g"]], [["B-x", "O", "O"]])
    assert evaluate("token-classification", ["O", "B-x", "I-x"], rows, [outputs])["entity_f1"] == 1.0
