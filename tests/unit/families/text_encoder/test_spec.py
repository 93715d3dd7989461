"""The spec of text encoders: which parts go together, and what is known without loading the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from model_fixtures import TINY, save_tiny

from fmplex_backend.decoders import Classifier, TokenClassifier
from fmplex_backend.families import family
from fmplex_backend.families.model_files import model_config
from fmplex_backend.families.text_encoder.sections import Projection, Text
from fmplex_backend.families.text_encoder.spec import TextEncoderConfig

SPEC = family("text-encoder")


@dataclass
class Parts:
    """A task's encoder and decoder."""

    encoder: Any
    decoder: Any


@pytest.mark.parametrize(
    ("encoder", "match"),
    [
        (Projection(2), "encoder.kind: a token-classification task reads text"),
        (Text(max_length=8, windows=2), "encoder.windows: a token-classification task reads one window"),
    ],
)
def test_tokens_are_read_of_one_window_of_text(encoder: Any, match: str) -> None:
    SPEC.check(Parts(encoder, Classifier(["a"])))
    SPEC.check(Parts(Text(), TokenClassifier(["O"])))
    with pytest.raises(ValueError, match=match):
        SPEC.check(Parts(encoder, TokenClassifier(["O"])))


def test_columns_of_numbers_are_projected() -> None:
    assert SPEC.encoder_for(["a", "b"], {}) == Projection(2)
    assert SPEC.encoder_for([], {"prefix": "q: ", "max_length": 8}) == Text(prefix="q: ", max_length=8)


def test_the_width_of_vectors(tmp_path: Path) -> None:
    config = TextEncoderConfig(model=str(save_tiny(tmp_path / "model")))
    assert SPEC.hidden_width(config, tmp_path / "config.pbtxt") == 32


@pytest.mark.parametrize("kind", TINY)
def test_models_that_are_text_encoders(tmp_path: Path, kind: str) -> None:
    assert SPEC.takes_model(model_config(save_tiny(tmp_path / "model", kind), tmp_path))
