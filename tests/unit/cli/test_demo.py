"""What the demo shows."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest

from fmplex.cli.answers import Answer
from fmplex.cli.demo import QUESTIONS, Exchange, curl_line, question_for, receipt_cells, table
from fmplex.client.wire import Interface


def labels(*names: str) -> np.ndarray:
    return np.array([name.encode() for name in names], dtype=np.object_)


SENTIMENT = {
    "SCORES": np.array([0.02, 0.98], np.float32),
    "LABEL": labels("positive"),
    "usage": np.array([1500, 20250, 4]),
}
TEXT = "A warm, funny film"
TASK = Interface("sentiment", "classification", (), ("SCORES", "LABEL"), 8)
NUMBERS = Interface("sentiment", "regression", (), ("SCORES",), 8, "FEATURES", size=3)
STREAM = Interface("story", "classification", (), ("SCORES", "LABEL"), 8, streams=True)


class TestQuestions:
    @pytest.mark.parametrize(
        ("task", "question"),
        [(TASK, QUESTIONS["sentiment"]), (NUMBERS, [0.0, 0.0, 0.0]), (STREAM, "a short text")],
    )
    def test_one_that_the_tasks_input_takes(self, task: Interface, question: object) -> None:
        assert question_for(task) == question


class TestShow:
    def test_receipt_in_milliseconds(self) -> None:
        assert receipt_cells(Answer(SENTIMENT)) == ("1.5", "20.2", "4")
        assert receipt_cells(Answer(error="full")) == ("-", "-", "-")

    def test_both_answers_where_they_differ(self) -> None:
        same = Exchange(TASK, TEXT, Answer(SENTIMENT), Answer(SENTIMENT))
        apart = Exchange(TASK, TEXT, Answer(SENTIMENT), Answer(error="[full]"))
        shown = [str(cell) for cell in table([same, apart]).columns[2].cells]
        assert shown == ["positive 0.980", "HTTP: positive 0.980\ngRPC: error: [full]"]

    def test_a_task_that_answers_in_parts_is_asked_over_grpc_alone(self) -> None:
        streamed = Exchange(STREAM, TEXT, None, Answer(SENTIMENT))
        failed = Exchange(STREAM, TEXT, None, Answer(error="gone"))
        assert (streamed.agreed, failed.agreed) == (True, False)
        columns = [[str(cell) for cell in column.cells] for column in table([streamed, failed]).columns]
        assert columns[2] == ["positive 0.980", "error: gone"]
        assert columns[3:5] == [["gRPC", "gRPC"], ["1.5", "-"]]
        line = shlex.split(curl_line("host:1", streamed))
        assert line[2] == "http://host:1/v2/models/story/generate_stream"
        assert json.loads(line[4]) == {"TEXT": TEXT}

    def test_a_row_of_numbers(self) -> None:
        exchange = Exchange(NUMBERS, [0.5, 1.0, 2.0], Answer(), Answer())
        (tensor,) = json.loads(shlex.split(curl_line("host:1", exchange))[4])["inputs"]
        assert tensor == {"name": "FEATURES", "shape": [1, 3], "datatype": "FP32", "data": [0.5, 1.0, 2.0]}
        assert [str(cell) for cell in table([exchange]).columns[1].cells] == ["0.5,1,2"]

    def test_the_curl_line_survives_a_shell(self) -> None:
        text = 'It\'s "quoted" & done'
        words = shlex.split(curl_line("127.0.0.1:8000", Exchange(TASK, text, Answer(), Answer())))
        assert words[:3] == ["curl", "-s", "http://127.0.0.1:8000/v2/models/sentiment/infer"]
        assert json.loads(words[4])["inputs"][0]["data"] == [text]
