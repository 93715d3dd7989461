"""Rows as vectors while a task is fitted: the same as the server computes, padding and windows included."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from task_fixtures import (
    fitted,
    sentence,
    spam,
)

from fmplex import (
    Backbone,
    Embedder,
    Task,
    Text,
)
from fmplex.data.rows import rows_of
from fmplex_backend.decoders.decoder import TOKENS
from fmplex_backend.families.text_encoder.fitting import first_tokens


def test_windows_take_part_in_training(backbone: Backbone) -> None:
    rng = random.Random(0)
    texts, labels = [], []
    for _ in range(120):  # what tells the labels apart comes after the first window
        label = rng.choice(("ham", "spam"))
        tail = sentence(rng, *((0, 25) if label == "ham" else (30, 55)), 6)
        texts.append(f"{' '.join(['w29'] * 6)} {tail}")
        labels.append(label)
    one = spam(backbone, encoder=Text(max_length=8))
    two = spam(backbone, encoder=Text(max_length=8, windows=2))
    figures = [fitted(task, (texts[:80], labels[:80])).evaluate(texts[80:], labels[80:]) for task in (one, two)]
    assert figures[1]["accuracy"] >= 0.9 > figures[0]["accuracy"]


@pytest.mark.parametrize("reads", ["mean", "cls", "max"])
def test_vectors_are_those_that_are_served(backbone: Backbone, reads: Any) -> None:
    texts = ["w1", "w2 w3 w4 w5", "w6 w7", " ".join(f"w{number}" for number in range(20))]
    for encoder in (Text(), Text(max_length=8, windows=2)):
        inputs = backbone.fitting_inputs(encoder, {}, 0)
        bare = backbone.for_training()
        features = inputs.features(bare, bare, reads)
        examples = inputs.examples(rows_of(texts, ["a"] * 4, encoder.reads()), reads="mean")
        task = Task("e", backbone, decoder=Embedder(pooling=reads, normalize=False), encoder=encoder)
        served = np.stack([each["EMBEDDING"] for each in task.outputs(texts)])
        assert np.allclose(features.fixed(examples).numpy(), served, atol=1e-5)
        assert np.allclose(features.every(examples).numpy(), served, atol=1e-5)
        with torch.inference_mode():
            assert np.allclose(features.vectors(examples).numpy(), served, atol=1e-5)
        assert [place.tolist() for place in features.places(examples)] == [[0], [1], [2], [3]]


def test_a_word_is_read_by_its_first_token(backbone: Backbone) -> None:
    encoder = Text(max_length=5)  # three words between the special tokens
    rows = rows_of([["w1", "w2"], ["w3", "w4", "w5", "w6"]], [["O", "O"], ["O", "O", "O", "O"]], encoder.reads())
    inputs = backbone.fitting_inputs(encoder, {}, 0)
    one, other = inputs.examples(rows, reads=TOKENS)
    assert (one.words, other.words) == ([1, 2], [1, 2, 3, -1])
    bare = backbone.for_training()
    features = inputs.features(bare, bare, TOKENS)
    assert features.fixed([one, other]).shape == (6, backbone.hidden)
    assert [place.tolist() for place in features.places([one, other])] == [[0, 1], [2, 3, 4, 5]]


def test_a_word_without_a_token_of_its_own_has_none(backbone: Backbone) -> None:
    (window,) = backbone.runtime.tokenizer.encode("w1 w2", Text(), spans=True)
    assert first_tokens(window, [(0, 2), (3, 5), (5, 5)]) == [1, 2, -1]


def test_precision_is_asked_for(backbone: Backbone) -> None:
    inputs = backbone.fitting_inputs(Text(), {}, 0)
    bare = backbone.for_training()
    features = inputs.features(bare, bare, "mean")
    for wanted, dtype in (("bfloat16", torch.bfloat16), ("auto", torch.float32), ("float32", torch.float32)):
        with features.precision(wanted), torch.inference_mode():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
