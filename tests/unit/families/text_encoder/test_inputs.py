"""TEXT and FEATURES: cells of tables, arguments of a command line, and tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.text_encoder.inputs import FEATURES, TEXT


def test_a_text() -> None:
    assert TEXT.is_item("a rose")
    assert not TEXT.is_item(["a rose"])
    assert TEXT.item("a rose") == ("a rose", [])
    assert TEXT.parse("0.5,1") == "0.5,1"
    tensor = TEXT.array(["späm", ""])
    assert (tensor.shape, tensor.tolist()) == ((2, 1), [["späm".encode()], [b""]])


def test_a_list_of_words_keeps_their_places() -> None:
    for words in (["Ada", "went"], ("Ada", "went"), np.array(["Ada", "went"], dtype=object)):
        text, places = TEXT.item(words)
        assert text == "Ada went"
        assert [text[start:end] for start, end in places] == ["Ada", "went"]


@pytest.mark.parametrize(("cell", "match"), [(3, "3 is not a text"), (["a", 3], "some texts are words")])
def test_cells_that_are_no_text(cell: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TEXT.item(cell)


def test_a_row_of_numbers() -> None:
    assert not FEATURES.is_item([0.5, 12])
    assert FEATURES.item(("0.5", 12)) == ([0.5, 12.0], [])
    assert FEATURES.parse("0.5,12,-3e2") == [0.5, 12.0, -300.0]
    tensor = FEATURES.array([[1, 2], [3.5, 4]])
    assert (tensor.dtype, tensor.tolist()) == (np.float32, [[1.0, 2.0], [3.5, 4.0]])


@pytest.mark.parametrize("rows", [[[1.0], [1.0, 2.0]], ["a"], [1.0, 2.0]])
def test_rows_that_are_no_tensor(rows: list[Any]) -> None:
    with pytest.raises(TaskProblem, match="rows of numbers, all of one length"):
        FEATURES.array(rows)


def test_an_argument_that_is_no_row() -> None:
    with pytest.raises(TaskProblem, match=r"'a rose' is not a row of numbers.*Give e.g. 0.5,12,3"):
        FEATURES.parse("a rose")
    with pytest.raises(TaskProblem, match="the task reads texts, not 3"):
        TEXT.array(["a", 3])
