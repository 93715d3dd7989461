"""What comes after a backbone: one class per decoder kind, each in a file of its own."""

from __future__ import annotations

from fmplex_backend.decoders.classification import Classifier
from fmplex_backend.decoders.decoder import Decoder
from fmplex_backend.decoders.embedding import Embedder
from fmplex_backend.decoders.multi_label import MultiLabel
from fmplex_backend.decoders.nearest import Nearest
from fmplex_backend.decoders.plugin import Plugin
from fmplex_backend.decoders.regression import Regressor
from fmplex_backend.decoders.similarity import Similarity
from fmplex_backend.decoders.token_classification import TokenClassifier

KINDS: dict[str, type[Decoder]] = {
    "embedding": Embedder,
    "classification": Classifier,
    "multi-label": MultiLabel,
    "regression": Regressor,
    "token-classification": TokenClassifier,
    "similarity": Similarity,
    "nearest": Nearest,
    "plugin": Plugin,
}

__all__ = [
    "KINDS",
    "Classifier",
    "Decoder",
    "Embedder",
    "MultiLabel",
    "Nearest",
    "Plugin",
    "Regressor",
    "Similarity",
    "TokenClassifier",
]
