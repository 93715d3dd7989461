"""The demo's answers: read, compared and written for people."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest

from fmplex.answers import Answer, agree, describe, spans
from fmplex.demo import Exchange, curl_line, receipt_cells, table


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


class TestDescribe:
    @pytest.mark.parametrize(
        ("outputs", "told"),
        [
            (SENTIMENT, "positive 0.980"),
            ({"SCORES": np.array([0.7, 0.2, 0.9]), "LABEL": labels("c", "a", "")}, "c 0.900, a 0.700"),
            ({"SCORES": np.array([0.1, 0.2]), "LABEL": labels("", "")}, "no label over its threshold"),
            ({"SCORES": np.array([2.5])}, "2.500"),
            ({"EMBEDDING": np.array([3, 4, 0, 0], np.float32)}, "[3.000 4.000 0.000 ...] 4 numbers, norm 5.000"),
            (ENTITIES, "Ada Lovelace (person), Babbage (person), London (location)"),
            ({**SENTIMENT, "TRUNCATED": np.array([False])}, "positive 0.980"),
            ({**SENTIMENT, "TRUNCATED": np.array([True])}, "positive 0.980 (text cut off)"),
            ({"OTHER": np.zeros((2, 3)), "usage": np.zeros(3)}, "OTHER [2, 3]"),
        ],
    )
    def test_outputs_say_what_kind_of_answer_it_is(self, outputs: dict[str, np.ndarray], told: str) -> None:
        assert describe(Answer(outputs), TEXT) == told

    def test_an_error_is_shown_in_its_place(self) -> None:
        assert describe(Answer(error="queue is full"), TEXT) == "error: queue is full"

    def test_two_entities_side_by_side_stay_two(self) -> None:
        outputs = {"LABEL": labels("B-x", "B-x", "I-y"), "OFFSETS": np.array([[0, 3], [4, 12], [13, 16]])}
        assert spans(outputs, TEXT) == [("Ada", "x"), ("Lovelace", "x"), ("met", "y")]


class TestAgree:
    def test_receipts_and_last_digits_may_differ(self) -> None:
        other = {**SENTIMENT, "SCORES": SENTIMENT["SCORES"] + 1e-5, "usage": np.array([0, 1, 1])}
        assert agree(Answer(SENTIMENT), Answer(other))

    @pytest.mark.parametrize(
        "change",
        [
            {"SCORES": np.array([0.03, 0.97], np.float32)},
            {"SCORES": np.array([0.98], np.float32)},
            {"LABEL": labels("negative")},
            {"MORE": np.zeros(1)},
        ],
    )
    def test_nothing_else_may(self, change: dict[str, np.ndarray]) -> None:
        assert not agree(Answer(SENTIMENT), Answer({**SENTIMENT, **change}))

    def test_an_error_agrees_with_nothing(self) -> None:
        assert not agree(Answer(error="full"), Answer(error="full"))


class TestShow:
    def test_receipt_in_milliseconds(self) -> None:
        assert receipt_cells(Answer(SENTIMENT)) == ("1.5", "20.2", "4")
        assert receipt_cells(Answer(error="full")) == ("-", "-", "-")

    def test_both_answers_where_they_differ(self) -> None:
        same = Exchange("sentiment", TEXT, Answer(SENTIMENT), Answer(SENTIMENT))
        apart = Exchange("sentiment", TEXT, Answer(SENTIMENT), Answer(error="[full]"))
        shown = [str(cell) for cell in table([same, apart]).columns[2].cells]
        assert shown == ["positive 0.980", "HTTP: positive 0.980\ngRPC: error: [full]"]

    def test_the_curl_line_survives_a_shell(self) -> None:
        text = 'It\'s "quoted" & done'
        words = shlex.split(curl_line("127.0.0.1:8000", Exchange("sentiment", text, Answer(), Answer())))
        assert words[:3] == ["curl", "-s", "http://127.0.0.1:8000/v2/models/sentiment/infer"]
        assert json.loads(words[4])["inputs"][0]["data"] == [text]
