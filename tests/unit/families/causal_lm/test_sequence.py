"""When an answer ends, and with what text."""

from __future__ import annotations

from typing import Any

import pytest

from fmplex_backend.families.causal_lm.sampling import Sampling
from fmplex_backend.families.causal_lm.sequence import Asked, Chosen, Sequence
from fmplex_backend.families.causal_lm.text import Detokenizer


def answered(text: str, **sampling: Any) -> tuple[str, str]:
    """What is sent of an answer whose tokens are these characters, and why it ends."""
    asked = Asked([1], Sampling(**sampling), streams=True)
    sequence = Sequence(asked, 8, {0}, Detokenizer(lambda tokens: "".join(map(chr, tokens))))
    sent = ""
    for character in text:
        reason = sequence.advance(Chosen(ord(character)))
        delta = sequence.take(reason)
        sent += delta.text if delta else ""
        if reason:
            return sent, reason
    return sent, ""


@pytest.mark.parametrize(
    ("sampling", "text", "reason"),
    [
        ({"stop": "b"}, "a", "stop"),
        ({"stop": "b", "min_tokens": 1}, "a", "stop"),
        ({"stop": "b", "min_tokens": 2}, "abca", "stop"),
        ({"stop": "bca", "min_tokens": 3, "max_tokens": 6}, "abcabc", "length"),
        ({"stop": "cabc", "min_tokens": 2, "max_tokens": 5}, "abcab", "length"),
        ({"stop": "cabc", "min_tokens": 2}, "ab", "stop"),
    ],
)
def test_no_stop_string_is_looked_for_before_the_fewest_tokens(
    sampling: dict[str, Any], text: str, reason: str
) -> None:
    """As in vLLM; what came before is no part of one either."""
    assert answered("abcabc", **sampling) == (text, reason)
