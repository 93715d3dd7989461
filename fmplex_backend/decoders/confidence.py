"""Whether an item is one of those a classifier was fitted on: a number from 0 to 1, from its vector and its scores.

The distances are Mahalanobis' with one covariance for all labels, relative to the distance that any item of the
training set has (Ren et al. 2021, "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection"). Both are
taken in the space of the linear discriminants, outside of which they are equal: labels - 1 directions suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fmplex_backend.decoders.decoder import Array
from fmplex_backend.errors import TaskProblem, TaskRefused
from fmplex_backend.safetensors_header import Header, expect_floats, expect_names, expect_shape

if TYPE_CHECKING:
    from torch import Tensor

CONFIDENCE_WEIGHTS = "confidence.safetensors"
SHRINKAGE = 0.05  # of the covariance towards a multiple of the identity: few rows do not determine it
QUANTILES = 200
TAIL = 40  # quantiles that tell how fast the confidence falls beyond the last of them
REFIT = "Fit the decoder again"
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Confidence:
    """h: width of the vectors, d: discriminants, C: labels. Either `quantiles` or `coefficients` is not empty."""

    center: Array  # [h] the mean of all training vectors
    directions: Array  # [h, d] in which a label's items have unit variance
    means: Array  # [C, d] of the labels, from the center
    spread: Array  # [d] variances of all training items
    quantiles: Array  # [q] ascending, of the relative distances of in-scope items; [0] where learned
    coefficients: Array  # [4] of distance, background, energy and 1 in the log-odds to be in scope; [0] where not

    def __call__(self, vectors: Array, values: Array) -> Array:
        """Vectors [n, h] and the head's values [n, C] -> [n]."""
        evidence = self.evidence(vectors, values)
        if len(self.coefficients):
            odds = evidence @ self.coefficients[:-1] + self.coefficients[-1]
            found: Array = 0.5 * (1 + np.tanh(0.5 * odds))  # sigmoid that cannot overflow
            return found
        return self._share(evidence[:, 0] - evidence[:, 1])

    def evidence(self, vectors: Array, values: Array) -> Array:
        """[n, 3]: squared distance to the nearest label, squared distance to the whole, energy of the values."""
        places = (vectors - self.center) @ self.directions  # [n, d]
        squares = np.square(places)
        to_means = squares.sum(axis=-1, keepdims=True) - 2 * places @ self.means.T + np.square(self.means).sum(axis=-1)
        largest = values.max(axis=-1)
        energy = largest + np.log(np.exp(values - largest[:, None]).sum(axis=-1))
        found: Array = np.stack([to_means.min(axis=-1), (squares / self.spread).sum(axis=-1), energy], axis=-1)
        return found

    def _share(self, distances: Array) -> Array:
        """The part of in-scope items that are at least as far; it goes on falling beyond the farthest of them."""
        grid = self.quantiles
        least = 1 / len(grid)
        within = np.interp(distances, grid, np.linspace(1, least, len(grid)))
        beyond = np.maximum(distances - grid[-1], 0) / max(grid[-1] - grid[-TAIL], 1e-6)
        shares: Array = (within * np.exp(-beyond)).astype(np.float32)
        return shares

    def tensors(self) -> dict[str, Tensor]:
        """For its file, by the names of the fields."""
        import torch

        return {each.name: torch.from_numpy(getattr(self, each.name).copy()) for each in fields(self)}

    @staticmethod
    def read(file: Path, hidden: int, labels: int) -> Confidence:
        """Raises TaskRefused."""
        from fmplex_backend.weights import read_safetensors

        own = read_safetensors(file, partial(_check, file, hidden, labels))
        if not bool((own["spread"] > 0).all()):
            raise TaskRefused(file, "spread", "it holds numbers that are not above 0", REFIT)
        if not bool((own["quantiles"].diff() >= 0).all()):
            raise TaskRefused(file, "quantiles", "they do not ascend", REFIT)
        return Confidence(**{name: tensor.float().numpy() for name, tensor in own.items()})


def _check(file: Path, hidden: int, labels: int, header: Header) -> None:
    expect_names(file, header, [each.name for each in fields(Confidence)], "a confidence")
    expect_floats(file, header)
    count = header["directions"].shape[-1] if header["directions"].shape else 0
    shapes = {"center": (hidden,), "directions": (hidden, count), "means": (labels, count), "spread": (count,)}
    learned = header["coefficients"].shape != (0,)
    shapes |= {"coefficients": (4 if learned else 0,), "quantiles": (0 if learned else QUANTILES,)}
    for name, shape in shapes.items():
        expect_shape(file, name, header[name], shape, "the confidence")


@dataclass(frozen=True, slots=True)
class Sample:
    """Items as fitting sees them: vectors [n, h] and the head's values [n, C], and their targets."""

    vectors: Array
    values: Array
    targets: Sequence[Any] = ()


def fit_confidence(
    training: Sample, targets: npt.NDArray[np.int64], held: Sample | None, outside: Sample | None
) -> Confidence:
    """From in-scope rows and, where there are some, rows that are out of scope.

    Args:
        targets: [n] labels of the training rows.
        held: in-scope rows that were not trained on. Without any, a fifth of the training rows are kept back.
        outside: rows to be rejected, from which it is learned how much each part of the evidence says.
    """
    if held is None:
        back = np.arange(len(targets)) % 5 == 4
        held = Sample(training.vectors[back], training.values[back])
        training, targets = Sample(training.vectors[~back], training.values[~back]), targets[~back]
    bare = _discriminants(training.vectors.astype(np.float64), targets, training.values.shape[-1])
    inside = bare.evidence(held.vectors, held.values)
    if not len(inside):
        raise TaskProblem("there are too few rows to learn rejection from. Give at least five, or validation rows")
    if outside is None or not len(outside.vectors):
        grid = np.quantile(inside[:, 0] - inside[:, 1], np.linspace(0, 1, QUANTILES)).astype(np.float32)
        return replace(bare, quantiles=grid)
    return replace(bare, coefficients=_log_odds(inside, bare.evidence(outside.vectors, outside.values)))


def _discriminants(vectors: Doubles, targets: npt.NDArray[np.int64], labels: int) -> Confidence:
    """Without quantiles and coefficients: it gives the evidence only."""
    width = vectors.shape[1]
    center = vectors.mean(axis=0)
    counts = np.bincount(targets, minlength=labels)
    means = np.zeros((labels, width))
    np.add.at(means, targets, vectors - center)
    means /= np.maximum(counts, 1)[:, None]
    inner = vectors - center - means[targets]
    within = inner.T @ inner / len(vectors)
    within = (1 - SHRINKAGE) * within + (SHRINKAGE * np.trace(within) / width + 1e-12) * np.eye(width)
    between = (means * counts[:, None]).T @ means / len(vectors)
    root = np.linalg.inv(np.linalg.cholesky(within))  # root @ within @ root.T is the identity
    variances, axes = np.linalg.eigh(root @ between @ root.T)
    kept = min(width, max(1, int((counts > 0).sum()) - 1))
    directions = root.T @ axes[:, -kept:]
    spread = 1 + np.maximum(variances[-kept:], 0)
    none = np.zeros(0, dtype=np.float32)
    return Confidence(_single(center), _single(directions), _single(means @ directions), _single(spread), none, none)


def _single(numbers: npt.NDArray[Any]) -> Array:
    return np.ascontiguousarray(numbers, dtype=np.float32)


def _log_odds(inside: Array, outside: Array) -> Array:
    """Coefficients of the evidence, and a constant, by logistic regression; both kinds weigh the same."""
    from sklearn.linear_model import LogisticRegression

    rows = np.concatenate([inside, outside]).astype(np.float64)
    mean, deviation = rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-9)
    kinds = np.repeat([1, 0], [len(inside), len(outside)])
    found = LogisticRegression(class_weight="balanced").fit((rows - mean) / deviation, kinds)
    slopes = found.coef_[0] / deviation
    return np.array([*slopes, found.intercept_[0] - slopes @ mean], dtype=np.float32)
