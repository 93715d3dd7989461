"""Linear layers whose products oneDNN computes, for CPUs on which torch's own way of them is slow.

In float32 torch multiplies with MKL, which takes slower code on CPUs that are not Intel's: on an AMD EPYC with AVX-512
SmolLM2's products take oneDNN 0.4 to 0.7 of the time, from one row to 144. torch.compile puts the same operator in.

In bfloat16 torch takes oneDNN by itself, which puts a module's weights into the order that AMX reads each time that it
is called. `PackedLinear` has them in that order alone: MiniLM's products take 0.5 of the time for 16 tokens, 0.7 for
208 and 0.85 for 2,048, and are bit for bit the same. Whoever reads such weights, to check or to copy a module, gets
them in the usual order, bit for bit what they were.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, cast

import torch
from torch import Tensor, nn

from fmplex_backend.adapters.torchscript import scripted
from fmplex_backend.families.precision import AMX, cpu_has
from fmplex_backend.hardware import processor_vendor

SLOW_DTYPE = torch.float32
FAST_VENDOR = "GenuineIntel"  # for MKL
PACKED_DTYPE = torch.bfloat16


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x: [..., in], weight: [out, in] -> [..., out]. It has no derivative."""
    nothing: list[int | float | complex | None] = []
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", nothing, "")
    return y


class OneDnnLinear(nn.Linear):
    """A Linear with the weights of another one. Where gradients are wanted it multiplies as any Linear."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] -> [..., out]."""
        if torch.is_grad_enabled():
            return super().forward(x)
        # torch.jit.trace cannot record the operator's list of scalars.
        multiply = scripted(product) if torch._C._get_tracing_state() else product
        return multiply(x, self.operand, self.bias)

    @property
    def operand(self) -> Tensor:
        """The weights as they are multiplied."""
        return self.weight


class PackedLinear(OneDnnLinear):
    """One whose weights are in oneDNN's own order alone. Copies are plain Linears: others may be loaded into them."""

    packed: Tensor  # opaque: as large as the weights, without strides

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        with torch.no_grad():
            packed = torch.ops.mkldnn._reorder_linear_weight(base.weight.detach())
        del self.weight
        self.register_buffer("packed", packed, persistent=False)

    def __getattr__(self, name: str) -> Any:
        """`weight` in the usual order, [out, in]: a copy each time, so nothing that a pass should read."""
        if name == "weight" and "packed" in self._buffers:
            return self.packed.to_dense()
        return super().__getattr__(name)

    @property
    def operand(self) -> Tensor:
        """The weights in that order."""
        return self.packed

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
        copied = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        copied.weight, copied.bias = nn.Parameter(self.weight, requires_grad=False), copy.deepcopy(self.bias, memo)
        return copied.train(self.training)


def speed_up(model: nn.Module, *, vendor: str | None = None) -> int:
    """Replace a frozen model's Linears in float32 where that gains; returns how many.

    Args:
        vendor: of the CPU, as /proc/cpuinfo names it; by default this machine's.
    """
    if not _has_operators() or (processor_vendor() if vendor is None else vendor) in ("", FAST_VENDOR):
        return 0
    slow = _linears(model, SLOW_DTYPE)
    for path, each in slow.items():
        model.set_submodule(path, OneDnnLinear(each))
    return len(slow)


def pack(model: nn.Module, *, has_amx: bool | None = None) -> int:
    """Replace a frozen model's Linears in bfloat16 where that gains; returns how many.

    Not those whose weights another module has too, as a head those of the embeddings: they would be in memory twice.

    Args:
        has_amx: whether the CPU multiplies bfloat16 with AMX; by default whether this one does, as torch tells it.
    """
    if not _has_operators() or not (cpu_has(AMX) if has_amx is None else has_amx):
        return 0
    uses = Counter(id(each) for _, each in model.named_parameters(remove_duplicate=False))
    paths = [path for path, each in _linears(model, PACKED_DTYPE).items() if uses[id(each.weight)] == 1]
    for path in paths:  # one after the other, and each lets go of what it replaces
        model.set_submodule(path, PackedLinear(cast(nn.Linear, model.get_submodule(path))))
    return len(paths)


def _linears(model: nn.Module, dtype: torch.dtype) -> dict[str, nn.Linear]:
    """Those on the CPU, by path."""
    found = {path: each for path, each in model.named_modules() if type(each) is nn.Linear}
    return {
        path: each for path, each in found.items() if each.weight.dtype == dtype and each.weight.device.type == "cpu"
    }


def _has_operators() -> bool:
    namespace: Any = torch.ops.mkldnn
    names = ("_linear_pointwise", "_reorder_linear_weight")
    return bool(torch.backends.mkldnn.is_available()) and all(hasattr(namespace, name) for name in names)
