"""Batch norms of time-series models in eval mode: a factor and an offset for each feature."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fmplex_backend.families.time_series.architectures import Architecture


class FixedNorm(nn.Module):
    """A frozen batch norm of transformers, which transposes [n, t, d] for torch's, and back.

    torch then multiplies those views row by row. Here one operation does all: 32 rows of the demo's PatchTST take 0.88
    of the time. Results are equal up to rounding.
    """

    factor: Tensor  # [d]
    offset: Tensor  # [d]

    def __init__(self, base: Any) -> None:
        super().__init__()
        object.__setattr__(self, "base", base)
        self.batchnorm = norm = base.batchnorm  # weights keep their names
        with torch.no_grad():
            factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            offset = norm.bias - norm.running_mean * factor
        self.register_buffer("factor", factor, persistent=False)
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, t, d] -> the same shape."""
        return torch.addcmul(self.offset, x, self.factor)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """transformers' own: who copies a module may train it, or load other weights into it."""
        copied: nn.Module = copy.deepcopy(self.__dict__["base"], memo)
        return copied


def fix_norms(model: nn.Module, architecture: Architecture) -> None:
    """Replace the batch norms of a frozen model, on its device."""
    found = {path: each for path, each in model.named_modules() if type(each).__name__ in architecture.batch_norms}
    for path, each in found.items():
        model.set_submodule(path, FixedNorm(each))
