"""Functions as TorchScript, for what torch.jit.trace cannot record: branches, loops, some operators' arguments."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor


@cache
def scripted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of tensors with annotations that TorchScript reads, compiled once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript's, whose place nothing has taken on CPUs
        compiled: Callable[..., Tensor] = torch.jit.script(function)
    return compiled
