"""Linear layers whose products oneDNN computes, for CPUs on which torch's own way of them is slow.

In float32 torch multiplies with MKL, which takes slower code on CPUs that are not Intel's: on an AMD EPYC with AVX-512
SmolLM2's products take oneDNN 0.4 to 0.7 of the time, from one row to 144. torch.compile puts the same operator in.

In bfloat16 torch takes oneDNN by itself, which puts a module's weights into the order that AMX reads each time that it
is called. `PackedOneDnnLinear` has them in that order alone: MiniLM's products take 0.5 of the time for 16 tokens, 0.7
for 208 and 0.85 for 2,048, and are bit for bit the same. So are the weights when they are read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fmplex_backend.families.linears import OtherLinear, PackedLinear


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x: [..., in], weight: [out, in], packed or not -> [..., out]."""
    nothing: list[int | float | complex | None] = []
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", nothing, "")
    return y


class OneDnnLinear(OtherLinear):
    """One with its weights as they are."""

    product = staticmethod(_product)

    @property
    def operands(self) -> tuple[Tensor, ...]:
        return (self.weight,)


class PackedOneDnnLinear(PackedLinear):
    """One with its weights in oneDNN's own order."""

    product = staticmethod(_product)

    @property
    def operands(self) -> tuple[Tensor, ...]:
        return (self.packed,)

    @staticmethod
    def pack(weight: Tensor) -> Tensor:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
        return packed

    def unpacked(self) -> Tensor:
        return self.packed.to_dense()


def is_there() -> bool:
    """Whether this torch has the operators."""
    namespace: Any = torch.ops.mkldnn
    names = ("_linear_pointwise", "_reorder_linear_weight")
    return bool(torch.backends.mkldnn.is_available()) and all(hasattr(namespace, name) for name in names)
