"""Linear layers whose products oneDNN computes, for CPUs on which torch's BLAS is slow.

In float32 torch multiplies with MKL, which takes slower code on CPUs that are not Intel's: on an AMD EPYC with AVX-512
SmolLM2's products take oneDNN 0.4 to 0.7 of the time, from one row to 144. torch.compile puts the same operator in. In
bfloat16 torch takes oneDNN by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fmplex_backend.hardware import processor_vendor

SLOW_DTYPE = torch.float32
FAST_VENDOR = "GenuineIntel"  # for MKL


class OneDnnLinear(nn.Linear):
    """A Linear with the weights of another one. Where gradients are wanted it multiplies as any Linear."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] -> [..., out]."""
        if torch.is_grad_enabled():  # the operation has no derivative
            return super().forward(x)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


def speed_up(model: nn.Module, *, vendor: str | None = None) -> int:
    """Replace a frozen model's Linears where that gains; returns how many.

    Args:
        vendor: of the CPU, as /proc/cpuinfo names it; by default this machine's.
    """
    if not _has_operator() or (processor_vendor() if vendor is None else vendor) in ("", FAST_VENDOR):
        return 0
    found = [(path, each) for path, each in model.named_modules() if type(each) is nn.Linear]
    slow = [
        (path, each) for path, each in found if each.weight.dtype == SLOW_DTYPE and each.weight.device.type == "cpu"
    ]
    for path, each in slow:
        model.set_submodule(path, OneDnnLinear(each))
    return len(slow)


def _has_operator() -> bool:
    namespace: Any = torch.ops.mkldnn
    return bool(torch.backends.mkldnn.is_available()) and hasattr(namespace, "_linear_pointwise")
