"""Linear layers in float32 whose weights are in the order that MKL multiplies with, for Intel's CPUs.

Otherwise MKL puts them into it at each call, which for few rows takes longer than the product: on a Xeon with AVX-512
those of 576 x 1,536 weights take, packed, 0.3 of the time for 8 rows, 0.8 for 33, 0.9 for 129 and 0.95 for 516, and no
longer for one. A pass of MiniLM takes 0.85 of the time for one text of 16 tokens, 0.91 for 32. torch.compile packs them
too, for one number of rows, which it then compiles for.

The library says nothing of products with another number of rows than was packed for. They are right, so far: `is_right`
looks, of every shape of weights that a model has. Packed for few rows those of many are slow; not the other way round.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fmplex_backend.families.linears import PackedLinear

PACKED_FOR = 512  # rows
TRIED = (1, 5, 33)  # rows, see `is_right`
CLOSE = 1e-4  # of the largest number


def _product(x: Tensor, packed: Tensor, shaped: Tensor, bias: Tensor | None) -> Tensor:
    """x: [..., in], shaped: [out, in] -> [..., out]."""
    y: Tensor = torch.ops.mkl._mkl_linear(x, packed, shaped, bias, x.numel() // x.size(-1))
    return y


class MklLinear(PackedLinear):
    """One with its weights in MKL's order. They are read as they were, but for the sign of zeros."""

    shaped: Tensor  # NaN, [out, in] of one number: what the operator asks for the shape, and reads where it cannot pack
    product = staticmethod(_product)

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        nothing = torch.full((1, 1), torch.nan).expand(base.out_features, base.in_features)
        self.register_buffer("shaped", nothing, persistent=False)

    @property
    def operands(self) -> tuple[Tensor, ...]:
        return self.packed, self.shaped

    @staticmethod
    def pack(weight: Tensor) -> Tensor:
        packed: Tensor = torch.ops.mkl._mkl_reorder_linear_weight(weight, PACKED_FOR)
        return packed

    def unpacked(self) -> Tensor:
        """What they make of unit vectors: exact, as all that is added is 0."""
        with torch.no_grad():
            return _product(torch.eye(self.in_features), self.packed, self.shaped, None).T.contiguous()


def is_there() -> bool:
    """Whether this torch has the operators."""
    namespace: Any = torch.ops.mkl
    return all(hasattr(namespace, name) for name in ("_mkl_linear", "_mkl_reorder_linear_weight"))


def is_right(base: nn.Linear, packed: MklLinear) -> bool:
    """Whether products of few rows are those of a Linear."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for rows in TRIED:
            x = torch.randn(rows, base.in_features, generator=generator)
            wanted = base(x)
            if not bool((packed(x) - wanted).abs().max() <= CLOSE * wanted.abs().max()):
                return False
    return True
