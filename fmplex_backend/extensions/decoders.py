"""What comes after the backbone: heads, on the reply thread, in numpy. One class per `decoder.kind`.

A decoder says what it takes from the backbone (`pooling`) and turns it into output tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fmplex_backend import config as cfg
from fmplex_backend.errors import TaskRefused
from fmplex_backend.extensions.weights import expect_shape, read_safetensors
from fmplex_backend.interface import DECODER_OUTPUTS

Array = npt.NDArray[np.float32]
TOKENS = "tokens"  # the pooling of those that want every token's hidden state


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the backbone made of a request. n items, h hidden."""

    pooled: Array | None  # [n, h]
    tokens: list[Array]  # n of [t_i, h], specials left out; empty unless asked for
    offsets: list[npt.NDArray[np.int32]]  # n of [t_i, 2], characters in the text as sent
    truncated: npt.NDArray[np.bool_]  # [n, 1]


class Decoder(Protocol):
    """After the backbone."""

    pooling: str
    gives: tuple[str, ...]

    def decode(self, encoded: Encoded) -> dict[str, npt.NDArray[Any]]:
        """Output tensors by name, batch first."""

    def sizes(self) -> dict[str, int]:
        """The last dim of each output that has a fixed one."""


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / np.sqrt(2, dtype=np.float32))),
}


def _erf(x: Array) -> Array:
    import torch

    return torch.erf(torch.from_numpy(np.ascontiguousarray(x))).numpy()  # numpy has none


def _softmax(x: Array) -> Array:
    raised: Array = np.exp(x - x.max(axis=-1, keepdims=True))
    total: Array = raised.sum(axis=-1, keepdims=True)
    return np.divide(raised, total)


def _unit(x: Array) -> Array:
    norms: Array = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.divide(x, np.maximum(norms, 1e-12))


class Head:
    """Linear layers with an activation between them; x: [..., h] -> [..., outputs]."""

    def __init__(self, directory: Path, section: cfg._Head, hidden: int, outputs: int = -1) -> None:
        file = directory / section.weights
        tensors = read_safetensors(file)
        prefixes = _layers(file, set(tensors))
        self.layers: list[tuple[Array, Array]] = []
        width = hidden
        for prefix in prefixes:
            weight, bias = tensors[f"{prefix}weight"], tensors[f"{prefix}bias"]
            last = prefix == prefixes[-1]
            expect_shape(file, f"{prefix}weight", weight, (outputs if last else -1, width), "the head")
            width = weight.shape[0]
            expect_shape(file, f"{prefix}bias", bias, (width,), "the head")
            self.layers.append((weight.float().numpy().T.copy(), bias.float().numpy()))
        self.outputs = width
        self.activation = ACTIVATIONS[section.activation]

    def __call__(self, x: Array) -> Array:
        """Apply the layers."""
        for position, (weight, bias) in enumerate(self.layers):
            x = (self.activation(x) if position else x) @ weight + bias
        return x


def _layers(file: Path, names: set[str]) -> list[str]:
    """Prefixes of the layers in order: [""] for one, ["0.", "1.", ...] for several."""
    prefixes = [""] if "weight" in names else [f"{n}." for n in range(len(names) // 2)]
    wanted = {f"{prefix}{part}" for prefix in prefixes for part in ("weight", "bias")}
    if names != wanted or not wanted:
        raise TaskRefused(
            file,
            ", ".join(sorted(names ^ wanted)) or "(whole file)",
            f"a head holds weight and bias (or 0.weight, 0.bias, 1.weight, ...), this file {sorted(names)}",
            "Save the head's tensors under those names",
        )
    return prefixes


@dataclass(frozen=True, slots=True)
class Pooled:
    """Takes the pooled vector through an optional normalisation and a head."""

    head: Head
    pooling: str
    normalize: bool

    def __call__(self, encoded: Encoded) -> Array:
        assert encoded.pooled is not None
        return self.head(_unit(encoded.pooled) if self.normalize else encoded.pooled)


class EmbeddingDecoder:
    """EMBEDDING [n, h]."""

    gives: tuple[str, ...] = ()

    def __init__(self, section: cfg.Embedding, directory: Path, hidden: int) -> None:
        self.pooling: str = section.pooling
        self.normalize, self.hidden = section.normalize, hidden

    def decode(self, encoded: Encoded) -> dict[str, npt.NDArray[Any]]:
        """The pooled vector."""
        assert encoded.pooled is not None
        return {"EMBEDDING": _unit(encoded.pooled) if self.normalize else encoded.pooled}

    def sizes(self) -> dict[str, int]:
        """Hidden."""
        return {"EMBEDDING": self.hidden}


class ClassificationDecoder:
    """SCORES [n, c] softmax, LABEL [n, 1] the best."""

    gives: tuple[str, ...] = ()

    def __init__(self, section: cfg.Classification, directory: Path, hidden: int) -> None:
        self.pooling: str = section.pooling
        self.labels = np.array(section.labels, dtype=np.object_)
        self.apply = Pooled(Head(directory, section, hidden, len(section.labels)), section.pooling, section.normalize)

    def decode(self, encoded: Encoded) -> dict[str, npt.NDArray[Any]]:
        """Probabilities and the best label."""
        scores = _softmax(self.apply(encoded))
        return {"SCORES": scores, "LABEL": self.labels[scores.argmax(axis=-1)][:, None]}

    def sizes(self) -> dict[str, int]:
        """One score per label, one label."""
        return {"SCORES": len(self.labels), "LABEL": 1}


class MultiLabelDecoder:
    """SCORES [n, c] sigmoid, LABEL [n, c]: those over the threshold, best first, then empty strings."""

    gives: tuple[str, ...] = ()

    def __init__(self, section: cfg.MultiLabel, directory: Path, hidden: int) -> None:
        self.pooling: str = section.pooling
        self.labels = np.array(section.labels, dtype=np.object_)
        self.threshold = section.threshold
        self.apply = Pooled(Head(directory, section, hidden, len(section.labels)), section.pooling, section.normalize)

    def decode(self, encoded: Encoded) -> dict[str, npt.NDArray[Any]]:
        """Independent probabilities and the labels they reach."""
        scores = 0.5 * (1 + np.tanh(0.5 * self.apply(encoded)))  # sigmoid that cannot overflow
        order = np.argsort(-scores, axis=-1, kind="stable")
        named = self.labels[order]
        named[np.take_along_axis(scores, order, axis=-1) < self.threshold] = ""
        return {"SCORES": scores, "LABEL": named}

    def sizes(self) -> dict[str, int]:
        """One of each per label."""
        return {"SCORES": len(self.labels), "LABEL": len(self.labels)}


class RegressionDecoder:
    """SCORES [n, outputs], the head's own values."""

    gives: tuple[str, ...] = ()

    def __init__(self, section: cfg.Regression, directory: Path, hidden: int) -> None:
        self.pooling: str = section.pooling
        self.apply = Pooled(Head(directory, section, hidden), section.pooling, section.normalize)

    def decode(self, encoded: Encoded) -> dict[str, npt.NDArray[Any]]:
        """The values."""
        return {"SCORES": self.apply(encoded)}

    def sizes(self) -> dict[str, int]:
        """The head's outputs."""
        return {"SCORES": self.apply.head.outputs}


class TokenClassificationDecoder:
    """TOKEN_SCORES [n, t, c], LABEL [n, t], OFFSETS [n, t, 2]; t is the longest item's, shorter ones end in
    empty labels, zero scores and offsets of -1."""

    pooling: str = TOKENS

    gives: tuple[str, ...] = ()

    def __init__(self, section: cfg.TokenClassification, directory: Path, hidden: int) -> None:
        self.labels = np.array(section.labels, dtype=np.object_)
        self.head = Head(directory, section, hidden, len(section.labels))

    def decode(self, encoded: Encoded) -> dict[str, npt.NDArray[Any]]:
        """A row per token."""
        items, longest = len(encoded.tokens), max(len(tokens) for tokens in encoded.tokens)
        scores = np.zeros((items, longest, len(self.labels)), dtype=np.float32)
        labels = np.full((items, longest), "", dtype=np.object_)
        offsets = np.full((items, longest, 2), -1, dtype=np.int32)
        for item, (tokens, spans) in enumerate(zip(encoded.tokens, encoded.offsets, strict=True)):
            if len(tokens):
                scores[item, : len(tokens)] = _softmax(self.head(tokens))
                labels[item, : len(tokens)] = self.labels[scores[item, : len(tokens)].argmax(axis=-1)]
                offsets[item, : len(tokens)] = spans
        return {"TOKEN_SCORES": scores, "LABEL": labels, "OFFSETS": offsets}

    def sizes(self) -> dict[str, int]:
        """Scores per label; tokens vary."""
        return {"TOKEN_SCORES": len(self.labels)}


class SimilarityDecoder:
    """SCORES [n, k] cosine to k labelled vectors, LABEL [n, 1] the nearest."""

    gives: tuple[str, ...] = ()

    def __init__(self, section: cfg.Similarity, directory: Path, hidden: int) -> None:
        self.pooling: str = section.pooling
        self.labels = np.array(section.labels, dtype=np.object_)
        file = directory / section.weights
        vectors = read_safetensors(file).get("vectors")
        if vectors is None:
            raise TaskRefused(file, "vectors", "there is no such tensor", "Save the labels' vectors as it")
        expect_shape(file, "vectors", vectors, (len(section.labels), hidden), "one vector per label")
        self.vectors = _unit(vectors.float().numpy()).T.copy()

    def decode(self, encoded: Encoded) -> dict[str, npt.NDArray[Any]]:
        """Cosines and the nearest label."""
        assert encoded.pooled is not None
        scores = _unit(encoded.pooled) @ self.vectors
        return {"SCORES": scores, "LABEL": self.labels[scores.argmax(axis=-1)][:, None]}

    def sizes(self) -> dict[str, int]:
        """One score per labelled vector."""
        return {"SCORES": len(self.labels), "LABEL": 1}


DECODERS: dict[str, Callable[[Any, Path, int], Decoder]] = {
    "embedding": EmbeddingDecoder,
    "classification": ClassificationDecoder,
    "multi-label": MultiLabelDecoder,
    "regression": RegressionDecoder,
    "token-classification": TokenClassificationDecoder,
    "similarity": SimilarityDecoder,
}


def load_decoder(section: Any, directory: Path, hidden: int) -> Decoder:
    """The decoder of a `task.json`'s decoder section; raises TaskRefused."""
    if section.kind == "plugin":
        from fmplex_backend.extensions.plugins import PluginDecoder  # needs torch

        return PluginDecoder(section, directory, hidden)
    decoder = DECODERS[section.kind](section, directory, hidden)
    decoder.gives = tuple(spec.name for spec in DECODER_OUTPUTS[section.kind])
    return decoder
