"""Cells as items of a task's input."""

from __future__ import annotations

from typing import Any

import pytest

from fmplex import TaskProblem
from fmplex.data.items import columns_for, item_of
from fmplex.data.stream import Source
from fmplex_backend.families.text_encoder.inputs import FEATURES, TEXT


def source(*columns: str) -> Source:
    return Source("in.csv", columns, iter(()))


@pytest.mark.parametrize(
    ("columns", "reads", "named", "size", "chosen"),
    [
        (("id", "text"), TEXT, "", None, ["text"]),
        (("id", "body"), TEXT, "body", None, ["body"]),
        (("a", "b"), FEATURES, "", 2, ["a", "b"]),
        (("a", "b", "c"), FEATURES, "c, a", 2, ["c", "a"]),
    ],
)
def test_columns(columns: tuple[str, ...], reads: Any, named: str, size: int | None, chosen: list[str]) -> None:
    assert columns_for(source(*columns), reads, named, size) == chosen


@pytest.mark.parametrize(
    ("columns", "reads", "named", "says"),
    [
        (("id", "body"), TEXT, "", "in.csv has no column 'text', but id, body. Name the right one with --column"),
        (("a", "b", "c"), FEATURES, "", "the task reads 2 numbers, a, b, c are 3 columns.*--column a,b"),
    ],
)
def test_columns_that_do_not_fit(columns: tuple[str, ...], reads: Any, named: str, says: str) -> None:
    with pytest.raises(TaskProblem, match=says):
        columns_for(source(*columns), reads, named, 2)


def test_items() -> None:
    assert item_of({"text": "a rose", "n": 1}, ["text"], TEXT) == "a rose"
    assert item_of({"text": ["a", "rose"]}, ["text"], TEXT) == "a rose"
    assert item_of({"a": "0.5", "b": 2}, ["a", "b"], FEATURES) == [0.5, 2.0]
    assert item_of({"text": "0.5,2"}, ["text"], FEATURES) == [0.5, 2.0]


@pytest.mark.parametrize(
    ("cells", "columns", "reads", "says"),
    [
        ({"text": ""}, ["text"], TEXT, "'text' is empty"),
        ({"text": " \n"}, ["text"], TEXT, "'text' is empty"),
        ({}, ["text"], TEXT, "'text' is empty"),
        ({"text": None}, ["text"], TEXT, "'text' is empty"),
        ({"text": 7}, ["text"], TEXT, "^7 is not a text$"),
        ({"text": "\udcff"}, ["text"], TEXT, "'text' is not valid UTF-8"),
        ({"text": "1,tall"}, ["text"], FEATURES, "^'1,tall' is not a row of numbers, which the task reads$"),
        ({"a": "1", "b": ""}, ["a", "b"], FEATURES, "'b' is empty"),
        ({"a": "1", "b": "tall"}, ["a", "b"], FEATURES, r"\['1', 'tall'\] is not a row of numbers$"),
    ],
)
def test_cells_that_are_none(cells: dict[str, Any], columns: list[str], reads: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        item_of(cells, columns, reads)
