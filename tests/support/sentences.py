"""Texts of our own to ask with: no data set's rows."""

from __future__ import annotations

import random

VOCABULARY = """
the a of and to in that it was for on are as with his they at be this from have or by one had not but what all were
when we there can an your which their said if do will each about how up out them then she many some so these would
other into has more her two like him see time could no make than first been its who now people my made over did down
only way find use may water long little very after words called just where most know river harbour lantern morning
quarrel kettle orchard violin engine passport ticket Geneva Lisbon Toyota Olga marathon refund balance invoice
goalkeeper parliament satellite enzyme wonderful dreadful boring splendid angry cheerful
"""
WORDS = VOCABULARY.split()

ODD = (
    "",
    " ",
    "\n\t \r\n",
    "?",
    "a",
    "Zażółć gęślą jaźń, naïve café \u2013 “quoted” … ½ ﬁ",
    "東京で会議がありました。とても楽しかったです。",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "I ❤️ this 👩‍👩‍👧‍👦 film 🎬!!! 10/10",
    "e\u0301 a\u0308 combining \u200b zero-width \ufeff marks",
    "nul \x00 and bell \x07 inside",
    "x" * 150,
    "http://example.org/a?b=c&d=%20#e @someone #hashtag user@example.org",
    "[CLS] special [SEP] tokens [PAD] spelled [MASK] out [UNK]",
)


def sentence(words: int, seed: int) -> str:
    """So many words, always the same for a seed, with some capitals and stops."""
    choice = random.Random(f"{seed} {words}")
    picked = [choice.choice(WORDS) for _ in range(words)]
    marked = [word + choice.choice(",;.!?") if choice.random() < 0.12 else word for word in picked]
    return " ".join(marked).capitalize() + "."


def mixture(count: int, seed: int = 0, longest: int = 200) -> list[str]:
    """Odd texts and sentences of 1 to `longest` words, most of them short."""
    lengths = random.Random(seed)
    plain = [sentence(max(1, round(longest ** lengths.random())), seed * 1000 + n) for n in range(count)]
    plain[: len(ODD)] = ODD[:count]
    lengths.shuffle(plain)
    return plain
