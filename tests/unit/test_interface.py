"""Names and shapes on the wire, and tags."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_backend.extensions.decoders import DECODERS
from fmplex_backend.interface import DECODER_OUTPUTS, FAMILY_OUTPUTS, TRUNCATED, tag_name, tag_of


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


@given(st.text(max_size=20))
def test_any_name_can_be_asked(output: str) -> None:
    assert tag_of(output) is None or output.startswith("VFM_")


def test_every_decoder_has_outputs_that_its_backbone_has() -> None:
    assert DECODER_OUTPUTS.keys() == DECODERS.keys()
    backbone = FAMILY_OUTPUTS["text-encoder"]
    for outputs in DECODER_OUTPUTS.values():
        assert {*outputs, TRUNCATED} <= {*backbone}
        shown = [spec.client_name for spec in (*outputs, TRUNCATED)]
        assert len(set(shown)) == len(shown)


def test_token_scores_are_shown_as_scores() -> None:
    assert {spec.client_name for spec in DECODER_OUTPUTS["token-classification"]} == {"SCORES", "LABEL", "OFFSETS"}
