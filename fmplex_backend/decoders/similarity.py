"""Cosine to a vector per label: SCORES ([labels]) and LABEL ([1])."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic.dataclasses import dataclass

from fmplex_backend.decoders.classification import OneLabel
from fmplex_backend.decoders.decoder import Array, Encoded, LoadedDecoder, Pooling, Weighted
from fmplex_backend.decoders.head import unit
from fmplex_backend.errors import TaskProblem
from fmplex_backend.safetensors_header import FLOATS, Header, expect_dtype, expect_name, expect_shape
from fmplex_backend.section import CHECKED, TrainingOnly

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(config=CHECKED, frozen=True)
class Similarity(Weighted, OneLabel):
    """The nearest of the labels' mean vectors; `fit` takes the means of at most `per_label` texts each."""

    pooling: Pooling = "mean"
    per_label: TrainingOnly[int] = 64

    kind: Literal["similarity"] = field(default="similarity", kw_only=True, repr=False)
    learns = "vectors"

    def load(self, directory: Path, hidden: int) -> LoadedDecoder:
        from fmplex_backend.weights import read_safetensors

        file = directory / self.weights
        tensors = read_safetensors(file, partial(_check, file, (len(self.labels), hidden)))
        vectors = unit_vectors(tensors["vectors"]).T.copy()  # [h, labels]
        labels = np.array(self.labels, dtype=np.object_)

        def decode(encoded: Encoded) -> dict[str, npt.NDArray[Any]]:
            scores = unit(encoded.vectors) @ vectors
            return {"SCORES": scores, "LABEL": labels[scores.argmax(axis=-1)][:, None]}

        return LoadedDecoder(self.pooling, self.sizes(directory, hidden), decode)

    def from_vectors(self, vectors: Tensor, targets: Sequence[int]) -> dict[str, Tensor]:
        """Per label the direction of the mean of its first `per_label` normalised vectors, [labels, h]."""
        import torch
        from torch.nn import functional

        check_every_label_has_rows(self.labels, targets)
        directions = functional.normalize(vectors.clone(), dim=-1)
        numbers = torch.tensor(targets)
        means = [directions[numbers == number][: self.per_label].mean(dim=0) for number in range(len(self.labels))]
        return {"vectors": functional.normalize(torch.stack(means), dim=-1).contiguous()}


def _check(file: Path, shape: tuple[int, int], header: Header) -> None:
    expect_name(file, header, "vectors")
    expect_dtype(file, "vectors", header["vectors"], FLOATS)
    expect_shape(file, "vectors", header["vectors"], shape, "one vector per label")


def unit_vectors(tensor: Tensor) -> Array:
    """Vectors [n, h] as unit vectors; their squares may be too large, or too small, for float32."""
    vectors: Array = unit(tensor.double().numpy()).astype(np.float32)
    return vectors


def check_every_label_has_rows(labels: Sequence[str], targets: Sequence[int]) -> None:
    """Raise TaskProblem that names the labels without any."""
    missing = set(range(len(labels))) - set(targets)
    if missing:
        names = ", ".join(labels[number] for number in sorted(missing))
        raise TaskProblem(f"there is no text for the labels {names}. Give some, or leave the labels out")
