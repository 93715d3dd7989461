"""The TEXT tensor as texts, and how much of a text is read."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from backend_fixtures import bytes_of
from hypothesis import given
from hypothesis import strategies as st

from fmplex_backend.errors import InvalidRequest
from fmplex_backend.families.text_encoder.texts import Excerpt, excerpt, read_each


def texts_of(value: Any, most: int = 100) -> list[str]:
    return [part.text for part in read_each(value, partial(excerpt, most=most))]


def test_texts() -> None:
    assert texts_of(bytes_of("a", "", "ö")) == ["a", "", "ö"]
    assert texts_of(np.array([["a"], ["b"]], dtype=np.object_)) == ["a", "b"]
    assert texts_of(np.array([b"flat"], dtype=np.object_)) == ["flat"]


def test_no_items() -> None:
    with pytest.raises(InvalidRequest, match="no items"):
        texts_of(np.zeros((0, 1), dtype=np.object_))


@pytest.mark.parametrize("broken", [b"\xff", b"ok then \xc3", b"\xed\xa0\x80", "\ud800" * 99])
def test_invalid_utf8_names_the_item(broken: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"TEXT\[1\] is not valid UTF-8.* at byte \d"):
        texts_of(np.array([[b"fine"], [broken]], dtype=np.object_))


def test_what_is_not_read_is_not_checked() -> None:
    assert excerpt(b"fine" + b"\xff" * 9, 4) == Excerpt("fine", is_cut=True)
    assert excerpt(b"\xff" * 9 + b"fine", 4, from_end=True).text == "fine"


@given(text=st.text("aé東🙂", max_size=40), most=st.integers(1, 60), as_bytes=st.booleans())
def test_an_excerpt_is_cut_between_characters(text: str, most: int, *, as_bytes: bool) -> None:
    cell = text.encode() if as_bytes else text
    first, last = excerpt(cell, most), excerpt(cell, most, from_end=True)
    fits = len(text.encode()) <= most
    for part in (first, last):
        assert part.is_cut is not fits
        assert most - 4 < len(part.text.encode()) <= most or fits
    assert text.startswith(first.text)
    assert text[last.skipped :] == last.text
    assert first.skipped == 0
