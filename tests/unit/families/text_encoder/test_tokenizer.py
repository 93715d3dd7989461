"""Texts to tokens: always what the tokenizer itself makes of the whole text, cut off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fmplex_backend.families.text_encoder.sections import Text
from fmplex_backend.families.text_encoder.tokenizer import (
    BYTES_PER_TOKEN,
    MAX_TEXT_BYTES,
    MIN_TEXT_BYTES,
    TextTokenizer,
    Tokens,
)
from testing.models import minilm as model_directory

PLAIN = Text()


@pytest.fixture(scope="module")
def minilm() -> Any:
    return AutoTokenizer.from_pretrained(model_directory())


@pytest.fixture(scope="module")
def byte_level() -> Any:
    """As RoBERTa's and ModernBERT's: a space belongs to the word after it."""
    vocabulary = {"<s>": 0, "</s>": 1, **{c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 2)}}
    vocabulary |= {"Ġa": len(vocabulary), "ab": len(vocabulary) + 1}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "a"), ("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, pad_token="<s>", model_max_length=16)


def encode(tokenizer: Any, text: str, max_length: int, encoder: Text = PLAIN, *, spans: bool = False) -> Tokens:
    (tokens,) = TextTokenizer(tokenizer, max_length).encode(text, encoder, spans=spans)
    return tokens


def reference(tokenizer: Any, text: str, max_length: int) -> list[int]:
    ids: list[int] = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
    return ids


# -- tokens


@pytest.mark.parametrize(
    "text", ["", " ", "hello", "Hello, World! " * 40, "naïve café 東京 🙂", "a\nb\tc", "[MASK] [SEP]"]
)
@pytest.mark.parametrize("max_length", [4, 16, 64])
def test_it_is_what_the_tokenizer_says(minilm: Any, text: str, max_length: int) -> None:
    tokens = encode(minilm, text, max_length)
    assert tokens.ids == reference(minilm, text, max_length)
    assert tokens.truncated == (len(minilm(text)["input_ids"]) > max_length)


@settings(max_examples=40)
@given(text=st.text(max_size=300), max_length=st.sampled_from([4, 5, 9, 30]))
def test_any_text(minilm: Any, text: str, max_length: int) -> None:
    tokens = encode(minilm, text, max_length, spans=True)
    assert tokens.ids == reference(minilm, text, max_length)
    assert all(0 <= start <= end <= len(text) for start, end in tokens.offsets)
    assert len(tokens.plain) == len(tokens.offsets)


@settings(max_examples=30)
@given(
    words=st.lists(st.text("ab .,\n€", min_size=0, max_size=12), min_size=50, max_size=400),
    max_length=st.sampled_from([4, 7]),
)
def test_a_text_far_longer_than_the_cut(byte_level: Any, minilm: Any, words: list[str], max_length: int) -> None:
    """Only its head is tokenised, and nobody can tell."""
    text = " ".join(words)
    for tokenizer in (byte_level, minilm):
        tokens = encode(tokenizer, text, max_length)
        assert tokens.ids == reference(tokenizer, text, max_length)
        assert tokens.truncated == (len(tokenizer(text)["input_ids"]) > max_length)


@pytest.mark.parametrize("unit", ["word ", "word\n", "wörd, ", "x" * 200 + " "])
def test_a_megabyte(minilm: Any, unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    tokens = encode(minilm, text, 128)
    assert tokens.ids == reference(minilm, text, 128)
    assert tokens.truncated


def test_a_long_text_of_which_only_spaces_are_left_out(minilm: Any) -> None:
    text = "word" + " " * 5000 + "other"
    tokens = encode(minilm, text, 16)
    assert tokens.ids == reference(minilm, text, 16)
    assert not tokens.truncated


def test_a_megabyte_without_a_space(minilm: Any) -> None:
    text = "x" * 1_000_000
    assert encode(minilm, text, 16).ids == reference(minilm, text, 16)


def test_cut_off_on_the_left(minilm: Any) -> None:
    left = AutoTokenizer.from_pretrained(minilm.name_or_path, truncation_side="left")
    text = " ".join(f"word{n}" for n in range(3000))
    assert encode(left, text, 16).ids == reference(left, text, 16)
    assert encode(left, text, 16).ids != reference(minilm, text, 16)


def test_a_task_cuts_off_earlier_than_the_backbone_and_never_later(minilm: Any) -> None:
    text, tokenizer = "a b c d e f g h", TextTokenizer(minilm, 8)
    lengths = [len(tokenizer.encode(text, Text(max_length=n), spans=False)[0].ids) for n in (4, 6, 100, None)]
    assert lengths == [4, 6, 8, 8]


@pytest.mark.parametrize("unit", ["w" * 90, "東", "!?", "ab\n", "x" * 3000 + " "])
@pytest.mark.parametrize("windows", [1, 3])
def test_what_is_cut_off_changes_nothing(minilm: Any, byte_level: Any, unit: str, windows: int) -> None:
    """Texts without a space, or of words far longer than a token: still only their heads are tokenised."""
    text = unit * (60_000 // len(unit))
    for tokenizer in (minilm, byte_level):
        own = TextTokenizer(tokenizer, 9)
        found = own.encode(text, Text(windows=windows), spans=False)
        whole = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        whole.no_padding()
        whole.enable_truncation(9)
        encoding = whole.encode(text)
        every = [encoding, *encoding.overflowing]
        assert [window.ids for window in found] == [window.ids for window in every[:windows]]
        assert all(window.truncated == (len(every) > windows) for window in found)


# -- templates and windows


def test_a_template_goes_around_the_text(minilm: Any) -> None:
    encoder = Text(template="review: {text} it was")
    tokens = encode(minilm, "good", 32, encoder, spans=True)
    assert tokens.ids == reference(minilm, "review: good it was", 32)
    assert tokens.offsets.tolist() == [[0, 4]]
    assert len(tokens.plain) == 1


def test_windows_overlap(minilm: Any) -> None:
    text = " ".join("abcdefghijklmnop")
    windows = TextTokenizer(minilm, 32).encode(text, Text(max_length=8, windows=3, overlap=2), spans=False)
    inner = [window.ids[1:-1] for window in windows]
    assert [len(each) for each in inner] == [6, 6, 6]
    assert inner[0][-2:] == inner[1][:2]
    assert inner[1][-2:] == inner[2][:2]
    assert windows[0].truncated


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"template": "no place"}, "must hold {text} once"),
        ({"template": "{text} {text}"}, "must hold {text} once"),
        ({"prefix": "a", "template": "b {text}"}, "exclude each other"),
        ({"overlap": 3}, "needs windows"),
        ({"windows": 2, "max_length": 8, "overlap": 5}, "half of max_length"),
    ],
)
def test_encoders_that_say_two_things(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Text(**options)


# -- prefix and offsets


def test_a_prefix_comes_first(minilm: Any) -> None:
    assert encode(minilm, "hello", 64, Text(prefix="query: ")).ids == reference(minilm, "query: hello", 64)


@pytest.mark.parametrize("prefix", ["", "query: ", "classify the 東京 text: ", "no space"])
def test_offsets_are_those_of_the_text_as_sent(minilm: Any, prefix: str) -> None:
    text = "Angela lives in 東京, naïvely"
    tokens = encode(minilm, text, 64, Text(prefix=prefix), spans=True)
    pieces = [text[start:end] for start, end in tokens.offsets]
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
    if not prefix.endswith("space"):
        assert pieces[:3] == ["Angela", "lives", "in"]
    assert tokens.offsets.dtype == np.int32


def test_offsets_of_byte_level_tokens(byte_level: Any) -> None:
    text = "ab a€"
    tokens = encode(byte_level, text, 16, Text(prefix="b "), spans=True)
    covered = {position for start, end in tokens.offsets for position in range(start, end)}
    assert covered >= {0, 1, 3, 4}
    assert all(0 <= start < end <= len(text) for start, end in tokens.offsets)


def test_plain_leaves_out_specials_and_the_prefix(minilm: Any) -> None:
    tokens = encode(minilm, "hello world", 64, Text(prefix="query: "), spans=True)
    assert minilm.convert_ids_to_tokens([tokens.ids[position] for position in tokens.plain]) == ["hello", "world"]


def test_a_prefix_that_fills_the_cut_leaves_nothing(minilm: Any) -> None:
    tokens = encode(minilm, "hello", 4, Text(prefix="a b c d e f "), spans=True)
    assert (tokens.plain, tokens.offsets.shape, tokens.truncated) == ([], (0, 2), True)


def test_spans_are_made_only_where_they_are_asked_for(minilm: Any) -> None:
    tokens = encode(minilm, "hello", 16)
    assert (tokens.plain, tokens.offsets.shape) == ([], (0, 2))


# -- texts of which only a part is read


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("unit", ["word and another. ", "東京", "a" * 90 + " ", "\n\n e\u0301"])
def test_of_many_megabytes_the_tokens_are_those_of_the_whole(minilm: Any, unit: str, side: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm.name_or_path, truncation_side=side)
    text = unit * (6_000_000 // len(unit.encode()))
    own = TextTokenizer(tokenizer, 16)
    part = own.read(text.encode(), PLAIN)
    assert part.is_cut
    assert len(part.text.encode()) <= MIN_TEXT_BYTES
    (tokens,) = own.encode_excerpt(part, PLAIN, spans=True)
    assert tokens.ids == reference(tokenizer, text[:100_000] if side == "right" else text[-100_000:], 16)
    assert tokens.truncated
    start, end = tokens.offsets[0] if side == "right" else tokens.offsets[-1]
    assert text[start:end].strip() in text[:99] + text[-99:]
    assert end <= 99 if side == "right" else start >= len(text) - 99


@pytest.mark.parametrize(
    "text", ["x" * 5_000_000, " " * 5_000_000, "\u200b" * 2_000_000, "e" + "\u0301" * 2_000_000], ids=len
)
def test_texts_of_few_tokens_are_read_up_to_a_bound(minilm: Any, byte_level: Any, text: str) -> None:
    for tokenizer in (minilm, byte_level):
        own = TextTokenizer(tokenizer, 16)
        part = own.read(text.encode(), PLAIN)
        (tokens,) = own.encode_excerpt(part, PLAIN, spans=False)
        assert tokens.truncated
        assert tokens.ids == reference(tokenizer, part.text, 16)


def test_what_is_read_grows_with_the_tokens_that_are_kept(minilm: Any) -> None:
    text = b"x" * 8_000_000
    own = TextTokenizer(minilm, 256)
    read = [len(own.read(text, Text(windows=windows)).text) for windows in (1, 2, 64)]
    assert read == [256 * BYTES_PER_TOKEN, 512 * BYTES_PER_TOKEN, MAX_TEXT_BYTES]
