"""When the answers of two versions count as the same, kind by kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fmplex_backend.decoders import KINDS, Decoder
from fmplex_backend.families.causal_lm.sections import Generator


def texts(*rows: list[str]) -> Any:
    return np.array([[cell.encode() for cell in row] for row in rows], dtype=np.object_)


def numbers(*rows: list[float]) -> Any:
    return np.array(rows, dtype=np.float32)


def agreed(kind: str, one: dict[str, Any], other: dict[str, Any], tolerance: float = 0.01) -> list[bool]:
    found = KINDS[kind].agreed(one, other, tolerance)
    assert found.dtype == np.bool_
    return list(found.tolist())


@pytest.mark.parametrize("kind", ["classification", "similarity", "nearest"])
def test_one_label_of_several(kind: str) -> None:
    one = {"LABEL": texts(["yes"], ["no"], [""]), "SCORES": numbers([0.9, 0.1], [0.4, 0.6], [0.5, 0.5])}
    other = {"LABEL": texts(["yes"], ["yes"], [""]), "SCORES": numbers([0.6, 0.4], [0.6, 0.4], [0.5, 0.5])}
    assert agreed(kind, one, other) == [True, False, True]


def test_labels_in_any_order() -> None:
    one = {"LABEL": texts(["a", "b", ""], ["a", "", ""], ["", "", ""])}
    other = {"LABEL": texts(["b", "a", ""], ["a", "b", ""], ["", "", ""])}
    assert agreed("multi-label", one, other) == [True, False, True]


def test_a_label_for_every_token_whatever_fills_the_row_up() -> None:
    one = {"LABEL": texts(["O", "B-PER"], ["O", ""])}
    other = {"LABEL": texts(["O", "B-PER", ""], ["O", "O", ""])}
    assert agreed("token-classification", one, other) == [True, False]


def test_labels_are_bytes_or_text() -> None:
    one, other = np.array([["é"]], dtype=np.object_), np.array([["é".encode()]], dtype=np.object_)
    assert agreed("classification", {"LABEL": one}, {"LABEL": other}) == [True]


def test_numbers_within_a_tolerance() -> None:
    one = {"SCORES": numbers([1000.0], [1000.0], [0.001], [0.0])}
    other = {"SCORES": numbers([1009.0], [1011.0], [0.01], [0.02])}
    assert agreed("regression", one, other) == [True, False, True, False]
    assert agreed("regression", one, other, 0.05) == [True, True, True, True]


def test_every_number_of_an_item() -> None:
    assert agreed("regression", {"SCORES": numbers([1, 2])}, {"SCORES": numbers([1, 3])}) == [False]


def test_vectors_by_their_direction() -> None:
    one = {"EMBEDDING": numbers([1, 0], [1, 0], [0, 0], [0, 0])}
    other = {"EMBEDDING": numbers([5, 0.1], [1, 0.5], [0, 0], [1, 0])}
    assert agreed("embedding", one, other) == [True, False, True, False]
    assert agreed("embedding", one, other, 0.2)[1]


def test_vectors_of_other_widths_are_others() -> None:
    assert agreed("embedding", {"EMBEDDING": numbers([1, 0])}, {"EMBEDDING": numbers([1, 0, 0])}) == [False]


def test_a_packages_decoder_by_what_it_gives() -> None:
    labels = {"LABEL": texts(["a"]), "SCORES": numbers([0.1])}, {"LABEL": texts(["a"]), "SCORES": numbers([0.9])}
    assert agreed("plugin", *labels) == [True]
    assert agreed("plugin", {"EMBEDDING": numbers([1, 0])}, {"EMBEDDING": numbers([2, 0])}) == [True]
    assert agreed("plugin", {"SCORES": numbers([1.0])}, {"SCORES": numbers([2.0])}) == [False]


def test_kinds_that_do_not_say() -> None:
    """Numbers with fractions tell; where there are none, everything."""
    one = {"VALUE": numbers([1.0]), "COUNT": np.array([[1]])}
    assert Decoder.agreed(one, {"VALUE": numbers([1.0]), "COUNT": np.array([[2]])}, 0.01).tolist() == [True]
    assert Decoder.agreed({"COUNT": np.array([[1]])}, {"COUNT": np.array([[2]])}, 0.01).tolist() == [False]
    assert Generator.agreed({"num": np.array([1])}, {"num": np.array([1])}, 0.01).tolist() == [True]


def test_answers_to_other_items_are_no_pair() -> None:
    with pytest.raises(ValueError, match="zip"):
        agreed("classification", {"LABEL": texts(["a"])}, {"LABEL": texts(["a"], ["b"])})
