"""Decoders while they are trained: a head's values from the backbone's vectors, and a loss to make small.

A head's tensors have the names that the server's decoders read.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fmplex import parts
from fmplex.data import IGNORED
from fmplex_backend.config import Plugin
from fmplex_backend.extensions.encoders import ACTIVATIONS
from fmplex_backend.extensions.plugins import CustomDecoder, make_decoder


class Trainable(Protocol):
    """What training asks of a decoder. n rows: texts, or words of token tasks."""

    module: nn.Module
    linear: bool  # one layer on fixed vectors: a convex problem

    def scores(self, vectors: Tensor) -> Tensor:
        """Vectors [n, h] -> the head's values."""

    def loss(self, scores: Tensor, wanted: Tensor) -> Tensor:
        """A number."""

    def wanted(self, targets: Sequence[Any]) -> Tensor:
        """What `loss` compares with; rows in the order of the texts."""


class Layers(nn.Module):
    """Linear layers, an activation between them; the tensors are named as the server reads them."""

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

    def tensors(self) -> dict[str, Tensor]:
        """For decoder.safetensors."""
        one = len(self.layers) == 1
        return {
            (name if one else f"{number}.{name}"): tensor.detach().float().cpu().clone().contiguous()
            for number, layer in enumerate(self.layers)
            for name, tensor in layer.named_parameters()
        }

    def fill(self, tensors: dict[str, Tensor]) -> None:
        """From decoder.safetensors."""
        with torch.no_grad():
            for number, layer in enumerate(self.layers):
                for name, parameter in layer.named_parameters():
                    parameter.copy_(tensors[name if len(self.layers) == 1 else f"{number}.{name}"])


class Head:
    """A built-in decoder with layers."""

    def __init__(
        self, decoder: parts.Classifier | parts.Regressor | parts.TokenClassifier, hidden: int, weights: Tensor | None
    ) -> None:
        outputs = decoder.outputs if isinstance(decoder, parts.Regressor) else len(decoder.labels)
        self.kind, self.normalize, self.weights = decoder.kind, decoder.normalize, weights
        self.module = Layers((hidden, *decoder.hidden, outputs), decoder.activation, decoder.dropout)
        self.linear = not decoder.hidden

    def scores(self, vectors: Tensor) -> Tensor:
        """Through the layers."""
        values: Tensor = self.module(nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors)
        return values

    def loss(self, scores: Tensor, wanted: Tensor) -> Tensor:
        """Cross entropy, over labels or of each; squared error of numbers."""
        if self.kind == "multi-label":
            return nn.functional.binary_cross_entropy_with_logits(scores, wanted, pos_weight=self.weights)
        if self.kind == "regression":
            return nn.functional.mse_loss(scores, wanted)
        return nn.functional.cross_entropy(scores, wanted, weight=self.weights, ignore_index=IGNORED)

    def wanted(self, targets: Sequence[Any]) -> Tensor:
        """Numbers of labels, flags, values, or all words' tags one after the other."""
        if self.kind in ("multi-label", "regression"):
            return torch.tensor(targets, dtype=torch.float32)
        if self.kind == "token-classification":
            return torch.tensor([number for row in targets for number in row], dtype=torch.long)
        return torch.tensor(targets, dtype=torch.long)


class PluginHead:
    """A package's decoder."""

    linear = False

    def __init__(self, decoder: parts.Plugin, hidden: int) -> None:
        section = Plugin(kind="plugin", name=decoder.name, options=decoder.options)
        self.module: CustomDecoder = make_decoder(section, "the decoder", hidden)

    def scores(self, vectors: Tensor) -> Tensor:
        """Its forward."""
        values: Tensor = self.module(vectors)
        return values

    def loss(self, scores: Tensor, wanted: Tensor) -> Tensor:
        """Its own."""
        return self.module.loss(scores, wanted)

    def wanted(self, targets: Sequence[Any]) -> Tensor:
        """Its own, of the labels as they were given."""
        return self.module.targets(targets)


def trainable(decoder: parts.Decoder, hidden: int, weights: Tensor | None = None) -> Head | PluginHead:
    """The training side of a decoder that has something to fit."""
    if isinstance(decoder, parts.Plugin):
        return PluginHead(decoder, hidden)
    assert isinstance(decoder, (parts.Classifier, parts.Regressor, parts.TokenClassifier))
    return Head(decoder, hidden, weights)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """For the part's safetensors file."""
    if isinstance(module, Layers):
        return module.tensors()
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in module.state_dict().items()}


def fill(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """From decoder.safetensors."""
    if isinstance(module, Layers):
        module.fill(tensors)
    else:
        module.load_state_dict(tensors)


def fit_linear(head: Head, vectors: Tensor, wanted: Tensor, decay: float) -> None:
    """A linear head on fixed vectors: L-BFGS on standardised columns, the scaling folded into the result."""
    vectors = vectors.clone()  # leaves inference mode behind
    if head.normalize:
        vectors = nn.functional.normalize(vectors, dim=-1)
    mean, deviation = vectors.mean(dim=0), vectors.std(dim=0, unbiased=False).clamp_min(1e-6)
    columns = (vectors - mean) / deviation
    layer = head.module.layers[0]
    assert isinstance(layer, nn.Linear)
    weight = torch.zeros_like(layer.weight, requires_grad=True)
    bias = torch.zeros_like(layer.bias, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        value = head.loss(columns @ weight.T + bias, wanted) + decay * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        layer.weight.copy_(weight / deviation)
        layer.bias.copy_(bias - layer.weight @ mean)


def prototypes(vectors: Tensor, wanted: Sequence[int], labels: Sequence[str], per_label: int) -> dict[str, Tensor]:
    """Per label the direction of the mean of its first `per_label` normalised vectors; [labels, h]."""
    directions = nn.functional.normalize(vectors.clone(), dim=-1)
    numbers = torch.tensor(wanted)
    means = [directions[numbers == number][:per_label].mean(dim=0) for number in range(len(labels))]
    return {"vectors": nn.functional.normalize(torch.stack(means), dim=-1).contiguous()}
