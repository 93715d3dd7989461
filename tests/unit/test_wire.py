"""What the clients say and hear, without a server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from fmplex import DeadlineExceeded, Label, Labels, ServerProblem, TaskProblem, Unreachable, Values
from fmplex.results import kind_of, result, results, spans
from fmplex.wire import Address, Interface, array_of, portions, problem, waits, worth_another_try


def test_an_interface_out_of_a_configuration() -> None:
    config = {
        "name": "spam",
        "max_batch_size": 16,
        "parameters": {"labels": {"string_value": '["ham", "spam"]'}, "decoder": {"string_value": "classification"}},
        "input": [{"name": "TEXT"}],
        "output": [{"name": "SCORES"}, {"name": "LABEL"}, {"name": "usage"}],
    }
    assert Interface.of(config) == Interface("spam", "classification", ("ham", "spam"), ("SCORES", "LABEL"), 16)
    plain = {"name": "e", "input": [{"name": "FEATURES"}], "output": [{"name": "EMBEDDING"}]}
    assert Interface.of(plain) == Interface("e", "embedding", (), ("EMBEDDING",), 1, "FEATURES")


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


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("localhost:8001", Address("localhost:8001", http=False, ssl=False)),
        ("grpcs://host:1/", Address("host:1", http=False, ssl=True)),
        ("http://host:8000", Address("host:8000", http=True, ssl=False)),
        ("https://host", Address("host", http=True, ssl=True)),
    ],
)
def test_addresses(url: str, address: Address) -> None:
    assert Address.of(url) == address


def test_an_address_that_is_none() -> None:
    with pytest.raises(ServerProblem, match="is no address"):
        Address.of("ftp://host")


def test_texts_go_in_parts() -> None:
    assert list(portions(["a", "b", "c"], 2)) == [["a", "b"], ["c"]]
    assert array_of("TEXT", ["é"]).tolist() == [["é".encode()]]


def test_numbers_go_as_they_are() -> None:
    found = array_of("FEATURES", [[0.5, 1], np.array([2, 3])])
    assert found.dtype == np.float32
    assert found.tolist() == [[0.5, 1.0], [2.0, 3.0]]


@pytest.mark.parametrize("rows", [["a rose"], [1.0, 2.0], [[1.0], [1.0, 2.0]], [["tall"]], [None]])
def test_rows_that_are_no_numbers(rows: list[Any]) -> None:
    with pytest.raises(TaskProblem, match="reads rows of as many numbers each"):
        array_of("FEATURES", rows)


def test_rows_that_are_no_texts() -> None:
    with pytest.raises(TaskProblem, match=r"reads texts, not \[0.5\]"):
        array_of("TEXT", ["a rose", [0.5]])


def test_waits_grow_and_end() -> None:
    found = list(waits(10))
    assert len(found) == 10
    assert all(0.5 * min(2.0, 0.05 * 2**n) <= wait <= min(2.0, 0.05 * 2**n) for n, wait in enumerate(found))


@pytest.mark.parametrize(
    ("status", "message", "kind", "again"),
    [
        ("StatusCode.UNAVAILABLE", "queue full", Unreachable, True),
        ("503", "not ready", Unreachable, True),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceeded, False),
        ("StatusCode.INVALID_ARGUMENT", "no such thing", ServerProblem, False),
        (None, "[Errno 111] Connection refused", Unreachable, True),
    ],
)
def test_errors(status: str | None, message: str, kind: type[ServerProblem], again: bool) -> None:
    error = InferenceServerException(message, status=status)
    assert type(problem(error, "here:1")) is kind
    assert worth_another_try(error) is again


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
    assert len(results("regression", [], ["x", "y"], row(SCORES=np.float32([[1], [2]])))) == 2


def test_spans_join_what_belongs_together() -> None:
    text = "Ada Lovelace met Babbage"
    outputs = row(
        LABEL=[b"B-P", b"I-P", b"O", b"B-P", b"I-P", b""],
        OFFSETS=[[0, 3], [4, 12], [13, 16], [17, 20], [20, 24], [-1, -1]],
        SCORES=[[0.1, 0.9], [0.2, 0.8], [0.9, 0.1], [0.3, 0.7], [0.4, 0.6], [0.0, 0.0]],
    )
    found = spans(["O", "B-P"], text, outputs)
    assert [(span.text, span.label, span.start, span.end) for span in found] == [
        ("Ada Lovelace", "P", 0, 12),
        ("Babbage", "P", 17, 24),
    ]
    assert [span.score for span in found] == pytest.approx([0.8, 0.6])
