"""What a fine-tuned matrix has more than the one it began as: a product of low rank, or more than that."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Product:
    """`b @ a` is the difference, but for the rounding of what was compared, or for `left_out`."""

    a: Tensor  # [r, in]
    b: Tensor  # [out, r]
    left_out: float  # the part of the difference's Frobenius norm that it lacks, 0 where it is exact

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def noise(weight: Tensor, rounding: float) -> float:
    """The largest singular value that rounding alone gives to the difference of two matrices.

    The difference of two rounded matrices is a random matrix besides, whose largest singular value is about its
    entries' deviation times (sqrt(rows) + sqrt(columns)); a rounding is off by less than half of `rounding` times the
    number.
    """
    rows, columns = weight.shape
    deviation = rounding * float(weight.double().square().mean().sqrt())
    return deviation * (math.sqrt(rows) + math.sqrt(columns))


def product(own: Tensor, base: Tensor, rounding: float, most: int | None = None) -> Product:
    """The product of least rank that is the difference of two matrices [out, in].

    Args:
        rounding: of the coarser of their formats, see `Checkpoint.rounding`.
        most: the largest rank; what a larger one would add is left out.
    """
    difference = own.double() - base.double()
    u, s, v = torch.linalg.svd(difference, full_matrices=False)
    rank = int((s > noise(base, rounding)).sum())
    kept = rank if most is None else min(rank, most)
    root = s[:kept].sqrt()
    lost = float(torch.linalg.vector_norm(s[kept:rank]) / torch.linalg.vector_norm(s)) if kept < rank else 0.0
    return Product((root[:, None] * v[:kept]).float().contiguous(), (u[:, :kept] * root).float().contiguous(), lost)


def rank(own: Tensor, base: Tensor, rounding: float) -> int:
    """That of their difference, but for rounding."""
    values = torch.linalg.svdvals(own.double() - base.double())
    return int((values > noise(base, rounding)).sum())
