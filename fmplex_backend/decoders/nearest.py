"""Votes of the k nearest labelled vectors: SCORES (parts of the votes, [labels]) and LABEL ([1])."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from pydantic.dataclasses import dataclass

from fmplex_backend.decoders.classification import OneLabel
from fmplex_backend.decoders.decoder import Array, Encoded, LoadedDecoder, Pooling, Weighted
from fmplex_backend.decoders.head import unit
from fmplex_backend.decoders.similarity import check_every_label_has_rows, unit_vectors
from fmplex_backend.errors import TaskRefused
from fmplex_backend.safetensors_header import FLOATS, Header, expect_dtype, expect_name, expect_shape
from fmplex_backend.section import CHECKED, TrainingOnly

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(config=CHECKED, frozen=True)
class Nearest(Weighted, OneLabel):
    """The label that most of the `k` nearest examples have, by cosine; `fit` keeps at most `per_label` of each label.

    Of labels with as many votes, the one whose examples are nearer in sum is said.
    """

    k: Annotated[int, Field(ge=1)] = 5
    pooling: Pooling = "mean"
    per_label: TrainingOnly[int] = 256

    kind: Literal["nearest"] = field(default="nearest", kw_only=True, repr=False)
    learns = "vectors"

    def load(self, directory: Path, hidden: int) -> LoadedDecoder:
        from fmplex_backend.weights import read_safetensors

        file = directory / self.weights
        tensors = read_safetensors(file, partial(_check, file, hidden))
        vectors = unit_vectors(tensors["vectors"])  # [examples, h]
        numbers = _numbers(file, tensors["labels"], len(self.labels))  # [examples]
        names, k = np.array(self.labels, dtype=np.object_), min(self.k, len(vectors))

        def sums(near: npt.NDArray[np.int64], votes: float | Array) -> Array:
            """What each label gets of its examples' votes: [n, k] -> [n, labels]."""
            every = np.zeros((len(near), len(names)), dtype=np.float32)
            np.add.at(every, (np.arange(len(near))[:, None], numbers[near]), votes)
            return every

        def decode(encoded: Encoded) -> dict[str, npt.NDArray[Any]]:
            cosines = unit(encoded.vectors) @ vectors.T  # [n, examples]
            near = np.argpartition(-cosines, k - 1, axis=-1)[:, :k]
            weights = 1 + np.take_along_axis(cosines, near, axis=-1) / (4 * k)  # breaks ties, and no majority
            return {"SCORES": sums(near, 1) / k, "LABEL": names[sums(near, weights).argmax(axis=-1)][:, None]}

        return LoadedDecoder(self.pooling, self.sizes(directory, hidden), decode)

    def from_vectors(self, vectors: Tensor, targets: Sequence[int]) -> dict[str, Tensor]:
        """The unit vectors [examples, h] of the first `per_label` rows of each label, and their labels' numbers."""
        import torch
        from torch.nn import functional

        check_every_label_has_rows(self.labels, targets)
        numbers = torch.tensor(targets)
        every = [(numbers == number).nonzero()[: self.per_label, 0] for number in range(len(self.labels))]
        kept = torch.cat(every)
        return {
            "vectors": functional.normalize(vectors[kept].clone(), dim=-1).contiguous(),
            "labels": numbers[kept].contiguous(),
        }


def _check(file: Path, hidden: int, header: Header) -> None:
    expect_name(file, header, "vectors")
    expect_name(file, header, "labels")
    expect_dtype(file, "vectors", header["vectors"], FLOATS)
    expect_dtype(file, "labels", header["labels"], ("I64", "I32", "I16", "I8", "U8"))
    expect_shape(file, "vectors", header["vectors"], (-1, hidden), "labelled vectors")
    expect_shape(file, "labels", header["labels"], header["vectors"].shape[:1], "a label per vector")


def _numbers(file: Path, tensor: Tensor, labels: int) -> npt.NDArray[np.int64]:
    """Of each vector its label's number; raises TaskRefused."""
    numbers = tensor.numpy().astype(np.int64)
    if not len(numbers) or numbers.min() < 0 or numbers.max() >= labels:
        raise TaskRefused(
            file,
            "labels",
            f"it does not hold whole numbers from 0 to {labels - 1}, one per vector",
            "Save the task again",
        )
    return numbers
