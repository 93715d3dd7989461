"""What is said about rows before the first step."""

from __future__ import annotations

from typing import Any

import pytest

from fmplex import Classifier, Embedder, MultiLabel, Regressor, TaskProblem
from fmplex.training.checks import check_rows
from fmplex_backend.decoders import Decoder
from fmplex_backend.decoders.rows import Rows, listed


def rows(labels: list[Any], source: str = "rows.csv", texts: list[str] | None = None) -> Rows:
    return Rows(texts or [f"text {number} of {source}" for number in range(len(labels))], labels, [], source)


GOOD = rows(["a", "b"] * 4)


@pytest.mark.parametrize(
    ("decoder", "given", "said"),
    [
        (Classifier(), rows(["a", "", "b", "  "]), r"rows.csv, rows 1 and 3: there is no label. Fill it in"),
        (Classifier(), rows([["a"], "b"]), r"row 0: a row has one label here, not \['a'\]"),
        (Classifier(), rows(["a", "a"]), "all rows have the label 'a', which leaves nothing to tell apart"),
        (Classifier(["a", "b"]), rows(["a", "a"]), "leaves nothing to tell apart"),
        (Classifier(["a", "b"]), rows(["a", "c"]), "row 1: 'c' is none of the labels a, b"),
        (Classifier(), rows(["a", "b"], texts=["", " "]), "all 2 texts are empty"),
        (MultiLabel(), rows(["", ""]), "no row has a label"),
        (Regressor(), rows(["1", ""]), "row 1: '' is not 1 finite number"),
    ],
)
def test_what_cannot_go_on(decoder: Decoder, given: Rows, said: str) -> None:
    with pytest.raises(TaskProblem, match=said):
        check_rows(decoder, given)


def test_test_rows_must_suit_the_training_rows() -> None:
    with pytest.raises(TaskProblem, match=r"test.csv, row 1: 'c' is none of the labels a, b"):
        check_rows(Classifier(), GOOD, test=rows(["a", "c"], "test.csv"))
    with pytest.raises(TaskProblem, match=r"test.csv, row 0: there is no label"):
        check_rows(Classifier(), GOOD, test=rows([""], "test.csv"))
    with pytest.raises(TaskProblem, match="cannot be evaluated"):
        check_rows(Embedder(), GOOD, test=GOOD)


@pytest.mark.parametrize(
    ("decoder", "given", "said"),
    [
        (Classifier(), rows(["a", "a", "b"]), "the label 'b' has one row only"),
        (Classifier(["a", "b", "c"]), GOOD, "the label 'c' has no row"),
        (Classifier(), rows([str(number) for number in range(12)]), "every row has a label of its own"),
        (Classifier(), rows(["a", "b"], texts=["", "x"]), "row 0: the text is empty"),
        (MultiLabel(["a", "b"]), rows(["a", ""]), "the label 'b' has no row"),
    ],
)
def test_what_is_odd(decoder: Decoder, given: Rows, said: str) -> None:
    (remark,) = [each for each in check_rows(decoder, given) if said in each]
    assert remark.startswith("rows.csv")


def test_rows_of_both_sets_are_counted() -> None:
    test = rows(["a", "b", "a"], "test.csv", [GOOD.items[0], "new", GOOD.items[3]])
    (remark,) = check_rows(Classifier(), GOOD, test=test)
    assert remark.startswith("test.csv, rows 0 and 2: 2 of 3 test rows are training rows too")
    assert check_rows(Classifier(), GOOD, rows(["a", "b"], "other.csv")) == []


def test_long_lists_are_cut() -> None:
    assert listed([str(number) for number in range(9)], 3) == "0, 1, 2 and 6 more"
    assert listed(["0"], 3) == "0"
