"""Names and shapes on the wire, and tags."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_backend.interface import tag_name, tag_of


@given(st.integers(0, 10**6))
def test_a_tag_names_its_vfm(vfm: int) -> None:
    assert tag_of(tag_name(vfm)) == vfm


@pytest.mark.parametrize(
    "output",
    ["", "VFM", "VFM_", "VFM_x", "VFM_-1", "VFM_+1", "VFM_1.0", "VFM_ 1", "VFM_²", "VFM_१", "vfm_1", "X_VFM_1"],
)
def test_what_is_no_tag(output: str) -> None:
    assert tag_of(output) is None


def test_a_number_that_nobody_would_count_to_is_no_tag() -> None:
    assert tag_of("VFM_" + "9" * 5000) is None


@given(st.text(max_size=20) | st.text("0123456789_-+ ²१V", max_size=12).map("VFM_".__add__))
def test_only_the_prefix_and_up_to_nine_digits_are_a_tag(output: str) -> None:
    number = re.fullmatch("VFM_([0-9]{1,9})", output)
    assert tag_of(output) == (int(number[1]) if number else None)
