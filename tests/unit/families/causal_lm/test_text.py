"""Text as tokens come: whole characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_backend.families.causal_lm.text import MOST_HELD, Detokenizer, StopStrings


def decode(tokens: Sequence[int]) -> str:
    """A byte a token: what byte-level tokenizers do at worst."""
    return bytes(tokens).decode("utf-8", "replace")


def in_parts(data: bytes) -> list[str]:
    detokenizer = Detokenizer(decode)
    return [*(detokenizer.add(byte) for byte in data), detokenizer.rest()]


@given(st.text(max_size=30))
def test_parts_make_the_text_and_are_whole_characters(text: str) -> None:
    parts = in_parts(text.encode())
    assert "".join(parts) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in part for part in parts) or "\N{REPLACEMENT CHARACTER}" in text


def test_a_character_that_is_never_finished_comes_at_the_end() -> None:
    assert in_parts("a日".encode()[:3]) == ["a", "", "", "\N{REPLACEMENT CHARACTER}"]


def test_the_last_token_brings_all_that_is_left() -> None:
    detokenizer = Detokenizer(decode)
    assert detokenizer.add(0xE6) == ""
    assert detokenizer.add(0x97, last=True) == decode([0xE6, 0x97])


@pytest.mark.parametrize("token", [0xE6, 0xFF, None])
def test_tokens_without_text_are_not_decoded_again_with_each_that_follows(token: int | None) -> None:
    """Bytes that make no characters, and special tokens: the engine's thread decodes them."""
    most = 0

    def decode_and_note(tokens: Sequence[int]) -> str:
        nonlocal most
        most = max(most, len(tokens))
        return decode([each for each in tokens if each])

    detokenizer = Detokenizer(decode_and_note)
    parts = [detokenizer.add(token or 0) for _ in range(10 * MOST_HELD)]
    assert most <= 2 * MOST_HELD
    assert "".join(parts) == decode([token or 0] * len(parts)) * bool(token)
    assert "".join([*(detokenizer.add(byte) for byte in "a日".encode()), detokenizer.rest()]) == "a日"


pieces = st.lists(st.text(alphabet="ab", max_size=4), max_size=12)


@given(pieces, st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string_however_it_is_cut(parts: list[str], stops: list[str]) -> None:
    whole = "".join(parts)
    filter_ = StopStrings(stops)
    given_ = ""
    for part in parts:
        given_ += filter_.add(part)
        if filter_.stopped:
            break
    else:
        given_ += filter_.rest()
    assert filter_.stopped == any(stop in whole for stop in stops)
    assert whole.startswith(given_)
    if not filter_.stopped:
        assert given_ == whole
    else:
        assert not any(stop in given_ for stop in stops)
        assert any(whole[len(given_) :].startswith(stop) for stop in stops)


def test_nothing_that_a_stop_string_may_begin_with_is_given_early() -> None:
    stops = StopStrings(["</end>"])
    assert [stops.add(each) for each in ("ok<", "/e", "x", "</", "end>more")] == ["ok", "", "</ex", "", ""]
    assert stops.stopped
