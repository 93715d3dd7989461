"""Linears of a frozen model that multiply in another way than torch's own."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fmplex_backend.adapters.torchscript import scripted


class OtherLinear(nn.Linear, ABC):
    """A Linear with the weights of another one. Where gradients are wanted it multiplies as any Linear.

    `product` takes x, `operands` and the bias; it has no derivative. torch.jit.trace cannot record all of what it may
    say, so it is compiled by torch.jit.script there.
    """

    product: ClassVar[Callable[..., Tensor]]

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] -> [..., out]."""
        if torch.is_grad_enabled():
            return super().forward(x)
        multiply = scripted(self.product) if torch._C._get_tracing_state() else self.product
        return multiply(x, *self.operands, self.bias)

    @property
    @abstractmethod
    def operands(self) -> tuple[Tensor, ...]:
        """What x is multiplied with."""


class PackedLinear(OtherLinear):
    """One whose weights are in a library's own order alone.

    Whoever reads them gets them in the usual order, made anew; but in a pass they are made once, and kept: T5's modules
    ask for the dtype of their weights at each. Copies are plain Linears: others may be loaded into them.
    """

    packed: Tensor  # opaque
    _read_in_passes: Tensor | None = None

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        with torch.no_grad():
            packed = self.pack(base.weight.detach())
        del self.weight
        self.register_buffer("packed", packed, persistent=False)

    @staticmethod
    @abstractmethod
    def pack(weight: Tensor) -> Tensor:
        """[out, in] in the library's order."""

    @abstractmethod
    def unpacked(self) -> Tensor:
        """The weights in the usual order, [out, in]."""

    def __getattr__(self, name: str) -> Any:
        if name != "weight" or "packed" not in self._buffers:
            return super().__getattr__(name)
        if not torch.is_inference_mode_enabled():
            return self.unpacked()
        if self._read_in_passes is None:
            self._read_in_passes = self.unpacked()
        return self._read_in_passes

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
        copied = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        copied.weight, copied.bias = nn.Parameter(self.weight, requires_grad=False), copy.deepcopy(self.bias, memo)
        return copied.train(self.training)


def weights_of(model: nn.Module) -> int:
    """How many a model has, packed ones among them."""
    packed = sum(each.in_features * each.out_features for each in model.modules() if isinstance(each, PackedLinear))
    return packed + sum(each.numel() for each in model.parameters())
