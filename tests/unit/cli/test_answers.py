"""Answers: compared across protocols, and written for people."""

from __future__ import annotations

import numpy as np
import pytest

from fmplex import Label, Labels, Values, Vector
from fmplex.cli.answers import Answer, agree, describe, result_line
from fmplex.client.wire import Interface
from fmplex_backend.decoders.results import Result
from fmplex_backend.decoders.token_classification import spans_of


def labels(*names: str) -> np.ndarray:
    return np.array([name.encode() for name in names], dtype=np.object_)


SENTIMENT = {
    "SCORES": np.array([0.02, 0.98], np.float32),
    "LABEL": labels("positive"),
    "usage": np.array([1500, 20250, 4]),
}
TEXT = "Ada Lovelace met Babbage in London"
ENTITIES = {
    "LABEL": labels("O", "B-person", "I-person", "I-person", "O", "B-person", "O", "B-location", "O"),
    "OFFSETS": np.array([[0, 0], [0, 3], [4, 8], [8, 12], [13, 16], [17, 24], [25, 27], [28, 34], [0, 0]], np.int32),
    "SCORES": np.zeros((9, 3), np.float32),
}


def task_of(kind: str, *names: str) -> Interface:
    return Interface("task", kind, names, (), 8)


class TestDescribe:
    @pytest.mark.parametrize(
        ("kind", "outputs", "told"),
        [
            ("classification", SENTIMENT, "positive 0.980"),
            ("multi-label", {"SCORES": np.array([0.7, 0.2, 0.9]), "LABEL": labels("c", "a", "")}, "c 0.900, a 0.700"),
            ("multi-label", {"SCORES": np.array([0.1, 0.2]), "LABEL": labels("", "")}, "no label over its threshold"),
            ("regression", {"SCORES": np.array([2.5])}, "2.500"),
            (
                "embedding",
                {"EMBEDDING": np.array([3, 4, 0, 0], np.float32)},
                "[3.000 4.000 0.000 ...] 4 numbers, norm 5.000",
            ),
            ("token-classification", ENTITIES, "Ada Lovelace (person), Babbage (person), London (location)"),
            ("classification", {**SENTIMENT, "TRUNCATED": np.array([False])}, "positive 0.980"),
            ("classification", {**SENTIMENT, "TRUNCATED": np.array([True])}, "positive 0.980 (text cut off)"),
            ("plugin", {"OTHER": np.zeros((2, 3)), "usage": np.zeros(3)}, "OTHER [2, 3]"),
            ("plugin", {"LABEL": labels("ham"), "usage": np.zeros(3)}, "LABEL ham"),
        ],
    )
    def test_the_kind_says_what_an_answer_is(self, kind: str, outputs: dict[str, np.ndarray], told: str) -> None:
        assert describe(Answer(outputs), task_of(kind), TEXT) == told

    def test_scores_have_the_names_that_the_task_tells(self) -> None:
        """One label is over its own low threshold, the other, with the higher score, is not."""
        outputs = {"SCORES": np.array([0.3, 0.6]), "LABEL": labels("rare", "")}
        assert describe(Answer(outputs), task_of("multi-label", "rare", "common"), TEXT) == "rare 0.300"

    def test_an_error_is_shown_in_its_place(self) -> None:
        assert describe(Answer(error="queue is full"), task_of("plugin"), TEXT) == "error: queue is full"

    def test_two_entities_side_by_side_stay_two(self) -> None:
        outputs = {"LABEL": labels("B-x", "B-x", "I-y"), "OFFSETS": np.array([[0, 3], [4, 12], [13, 16]])}
        found = spans_of(TEXT, {**outputs, "SCORES": np.zeros((3, 2), np.float32)})
        assert [(span.text, span.label) for span in found] == [("Ada", "x"), ("Lovelace", "x"), ("met", "y")]
        answer = Answer({**outputs, "SCORES": np.zeros((3, 2))})
        assert describe(answer, task_of("token-classification"), TEXT) == "Ada (x), Lovelace (x), met (y)"


SCORES = {"a": 0.05, "b": 0.5, "c": 0.25, "d": 0.2}


class TestLines:
    @pytest.mark.parametrize(
        ("found", "top", "line"),
        [
            (Label("b", SCORES), 3, "b 0.500, c 0.250, d 0.200"),
            (Label("b", SCORES), 1, "b 0.500"),
            (Label("b", SCORES), None, "b 0.500, c 0.250, d 0.200, a 0.050"),
            (Label("", SCORES), 2, "no label (best: b 0.500, c 0.250)"),
            (Label("spam", {"0": 0.1, "1": 0.9}), 3, "spam 0.900"),
            (Labels(("b", "c"), SCORES), 1, "b 0.500, c 0.250"),
            (Labels(("b", "c"), SCORES), None, "b 0.500, c 0.250 (below: d 0.200, a 0.050)"),
            (Labels((), SCORES), 2, "no label over its threshold (best: b 0.500, c 0.250)"),
            (Values(np.arange(6, dtype=np.float32)), 3, "0.000 1.000 2.000 3.000 ..."),
            (Vector(np.float32([3, 4])), 3, "[3.000 4.000] 2 numbers, norm 5.000"),
            (Vector(np.float32([3, 4]), truncated=True), 3, "[3.000 4.000] 2 numbers, norm 5.000 (text cut off)"),
        ],
    )
    def test_results(self, found: Result, top: int | None, line: str) -> None:
        assert result_line(found, top) == line


class TestAgree:
    def test_receipts_and_last_digits_may_differ(self) -> None:
        other = {**SENTIMENT, "SCORES": SENTIMENT["SCORES"] + 0.01, "usage": np.array([0, 1, 1])}
        assert agree(Answer(SENTIMENT), Answer(other))

    @pytest.mark.parametrize(
        "change",
        [
            {"SCORES": np.array([0.1, 0.9], np.float32)},
            {"SCORES": np.array([0.98], np.float32)},
            {"LABEL": labels("negative")},
            {"MORE": np.zeros(1)},
        ],
    )
    def test_nothing_else_may(self, change: dict[str, np.ndarray]) -> None:
        assert not agree(Answer(SENTIMENT), Answer({**SENTIMENT, **change}))

    def test_an_error_agrees_with_nothing(self) -> None:
        assert not agree(Answer(error="full"), Answer(error="full"))
