"""Typed results out of output tensors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from fmplex import Label, Labels, Raw, Span, Spans, TaskProblem, Values, Vector
from fmplex.client.results import above, as_json_value, best, fields, joined, kind_of, result
from fmplex_backend.decoders.token_classification import spans_of


@pytest.mark.parametrize(
    ("outputs", "kind"),
    [
        (["EMBEDDING"], "embedding"),
        (["SCORES", "LABEL", "OFFSETS"], "token-classification"),
        (["SCORES", "LABEL"], "classification"),
        (["SCORES"], "regression"),
        (["OTHER"], "plugin"),
    ],
)
def test_a_task_that_does_not_say_what_it_is(outputs: list[str], kind: str) -> None:
    assert kind_of(outputs) == kind


def row(**outputs: Any) -> dict[str, Any]:
    return {name: np.array(value, dtype=object if name == "LABEL" else None) for name, value in outputs.items()}


def test_results_by_kind() -> None:
    found = result("classification", ["a", "b"], "x", row(SCORES=[0.25, 0.75], LABEL=[b"b"], TRUNCATED=[True]))
    assert found == Label("b", {"a": 0.25, "b": 0.75}, truncated=True)
    assert result("classification", [], "x", row(SCORES=[0.25, 0.75], LABEL=[b"b"])) == Label(
        "b", {"0": 0.25, "1": 0.75}
    )
    several = result("multi-label", ["a", "b"], "x", row(SCORES=[0.9, 0.1], LABEL=[b"a", b""]))
    assert several == Labels(("a",), {"a": 0.9, "b": 0.1})
    value = result("regression", [], "x", row(SCORES=np.float32([2.5])))
    assert isinstance(value, Values)
    assert value.value == 2.5


def test_outputs_that_an_entry_does_not_show() -> None:
    found = result("classification", ["a", "b"], "x", row(LABEL=[b"b"]))
    assert isinstance(found, Raw)
    assert found.outputs["LABEL"].tolist() == [b"b"]


def test_of_several_parts_the_last_of_each_tensor_counts() -> None:
    first, last = row(SCORES=[0.5], EMBEDDING=[1.0]), row(SCORES=[0.75])
    found = joined("regression", [first, last])
    assert {name: value.tolist() for name, value in found.items()} == {"SCORES": [0.75], "EMBEDDING": [1.0]}
    assert joined("of no family here", [last]) == last


def test_spans_join_what_belongs_together() -> None:
    text = "Ada Lovelace met Babbage"
    outputs = row(
        LABEL=[b"B-P", b"I-P", b"O", b"B-P", b"I-P", b""],
        OFFSETS=[[0, 3], [4, 12], [13, 16], [17, 20], [20, 24], [-1, -1]],
        SCORES=[[0.1, 0.9], [0.2, 0.8], [0.9, 0.1], [0.3, 0.7], [0.4, 0.6], [0.0, 0.0]],
    )
    found = spans_of(text, outputs)
    assert [(span.text, span.label, span.start, span.end) for span in found] == [
        ("Ada Lovelace", "P", 0, 12),
        ("Babbage", "P", 17, 24),
    ]
    assert [span.score for span in found] == pytest.approx([0.8, 0.6])


def test_a_result_as_json() -> None:
    assert as_json_value(Label("a", {"a": 0.5})) == {"label": "a", "scores": {"a": 0.5}, "truncated": False}
    vector = as_json_value(Vector(np.float32([1, 2])))
    assert json.loads(json.dumps(vector)) == {"vector": [1.0, 2.0], "truncated": False}
    raw = result("plugin", [], "x", row(OTHER=[1, 2], TRUNCATED=[True]))
    assert isinstance(raw, Raw)
    assert as_json_value(raw) == {"outputs": {"OTHER": [1, 2]}, "truncated": True}


def test_the_best_scores() -> None:
    scores = {"a": 0.1, "b": 0.7, "c": 0.2}
    assert list(best(scores, 2).items()) == [("b", 0.7), ("c", 0.2)]
    assert list(best(scores)) == ["b", "c", "a"]


def test_what_is_scored_below_a_threshold_goes() -> None:
    label = Label("a", {"a": 0.6, "b": 0.4}, truncated=True)
    assert above(label, 0.5) is label
    assert above(label, 0.7) == Label("", label.scores, truncated=True)
    assert above(Label("spam", {"0": 0.6, "1": 0.4}), 0.5).label == "spam"  # type: ignore[attr-defined]
    several = Labels(("a",), {"a": 0.6, "b": 0.3})
    assert above(several, 0.2) == Labels(("a", "b"), several.scores)
    assert above(several, 0.7) == Labels((), several.scores)
    spans = Spans((Span("Ada", "P", 0, 3, 0.9), Span("London", "L", 4, 10, 0.2)))
    assert above(spans, 0.5) == Spans(spans.spans[:1])
    with pytest.raises(TaskProblem, match=r"no labels with scores. Leave --threshold out"):
        above(Vector(np.float32([1, 2])), 0.5)


def test_results_by_columns() -> None:
    label = Label("a", {"a": 0.5, "b": 0.3, "c": 0.2})
    assert fields(label) == {"label": "a", "score": 0.5, "truncated": False}
    assert fields(label, 2)["scores"] == {"a": 0.5, "b": 0.3}
    assert fields(label, None)["scores"] == label.scores
    assert fields(Label("", label.scores))["score"] == 0.5
    assert fields(Labels(("a",), {"a": 0.5})) == {"labels": ["a"], "truncated": False}
    assert fields(Values(np.float32([2.5]))) == {"value": 2.5, "truncated": False}
    assert fields(Values(np.float32([1, 2]))) == {"values": [1.0, 2.0], "truncated": False}
    assert list(fields(Vector(np.float32([1, 2]), truncated=True)).values()) == [[1.0, 2.0], True]
