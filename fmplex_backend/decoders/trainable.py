"""Heads while they are trained, in torch. Imported only when a task is fitted.

A head's tensors have the names that the served decoders read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fmplex_backend.decoders.activations import ACTIVATIONS


class Layers(nn.Module):
    """Linear layers with an activation between them."""

    def __init__(self, widths: Sequence[int], activation: str, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[n, h] -> [n, outputs]."""
        for position, layer in enumerate(self.layers):
            x = layer(self.dropout(self.activation(x) if position else x))
        return x

    def named_tensors(self) -> dict[str, nn.Parameter]:
        """By their names in decoder.safetensors: weight and bias, or 0.weight, 0.bias, 1.weight, ..."""
        one = len(self.layers) == 1
        return {
            (name if one else f"{number}.{name}"): parameter
            for number, layer in enumerate(self.layers)
            for name, parameter in layer.named_parameters()
        }


@dataclass(frozen=True)
class TrainableHead:
    """A decoder's head as the trainer uses it. Its n rows are items, or words where it reads tokens."""

    module: nn.Module
    reads: str  # mean, cls, max or TOKENS
    loss: Callable[[Tensor, Tensor], Tensor]  # values and stacked targets -> a scalar
    stack: Callable[[Sequence[Any]], Tensor]  # targets of several rows -> what `loss` compares with
    normalize: bool = False
    # Vectors and targets -> those that a linear head is fitted to, [m, h] and theirs, where these are others.
    apart: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    @property
    def linear(self) -> nn.Linear | None:
        """The layer of a head that is one linear layer, whose fit to fixed vectors is a convex problem; else None."""
        if isinstance(self.module, Layers) and len(self.module.layers) == 1:
            layer = self.module.layers[0]
            assert isinstance(layer, nn.Linear)
            return layer
        return None

    def values(self, vectors: Tensor) -> Tensor:
        """Vectors [n, h] -> values [n, ...]."""
        found: Tensor = self.module(nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors)
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Copies of its weights, by their names in decoder.safetensors."""
        return tensors_of(self.module)

    def fill(self, tensors: Mapping[str, Tensor]) -> bool:
        """Take over the tensors of a decoder.safetensors; False, with nothing changed, where names or shapes differ."""
        own = self.tensors()
        if {name: each.shape for name, each in own.items()} != {name: each.shape for name, each in tensors.items()}:
            return False
        if isinstance(self.module, Layers):
            with torch.no_grad():
                for name, parameter in self.module.named_tensors().items():
                    parameter.copy_(tensors[name])
        else:
            self.module.load_state_dict(dict(tensors))
        return True


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of a part's tensors, for its safetensors file."""
    named = module.named_tensors() if isinstance(module, Layers) else module.state_dict()
    floats = isinstance(module, Layers)
    return {
        name: (each.detach().float() if floats else each.detach()).cpu().clone().contiguous()
        for name, each in named.items()
    }


def fit_linear(head: TrainableHead, vectors: Tensor, targets: Tensor, decay: float) -> None:
    """Fit a linear head to fixed vectors [n, h]: L-BFGS on standardised columns, the scaling folded into the result."""
    layer = head.linear
    assert layer is not None
    vectors = vectors.clone()  # tensors made in inference mode cannot take part in autograd
    if head.normalize:
        vectors = nn.functional.normalize(vectors, dim=-1)
    if head.apart is not None:
        vectors, targets = head.apart(vectors, targets)
    mean, deviation = vectors.mean(dim=0), vectors.std(dim=0, unbiased=False).clamp_min(1e-6)
    columns = (vectors - mean) / deviation
    weight = torch.zeros_like(layer.weight, requires_grad=True)
    bias = torch.zeros_like(layer.bias, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        value = head.loss(columns @ weight.T + bias, targets) + decay * weight.square().sum()
        value.backward()
        return float(value.detach())

    optimizer.step(closure)
    with torch.no_grad():
        layer.weight.copy_(weight / deviation)
        layer.bias.copy_(bias - layer.weight @ mean)
