"""Texts to measure with: no two alike, since rows with the same tokens run once."""

from __future__ import annotations

import random

# Short and common: one token each in most vocabularies, so that a text of n words has about n tokens.
WORDS = tuple(
    """
    time year people way day man thing woman life child world school state family student group country problem hand
    part place case week company system program question work government number night point home water room mother
    area money story fact month lot right study book eye job word business issue side kind head house service friend
    father power hour game line end member law car city name team minute idea body back face level office door health
    """.split()  # noqa: SIM905 - a list of so many words would be read by nobody
)
AROUND = 2  # tokens that most tokenizers put around a text


def texts_of_about(tokens: int, count: int, seed: int) -> list[str]:
    """So many texts of random words, of about so many tokens; the same for a seed."""
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(max(1, tokens - AROUND))) for _ in range(count)]
