"""Linear heads: the numpy side that is served, and the section that all kinds with a head share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from fmplex_backend.decoders.decoder import Array, Encoded, Pooling, Weighted
from fmplex_backend.errors import TaskRefused
from fmplex_backend.safetensors_header import Header, expect_floats, expect_shape, read_header, some
from fmplex_backend.section import CHECKED, TrainingOnly

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fmplex_backend.decoders.trainable import TrainableHead

Activation = Literal["tanh", "gelu", "relu"]

LARGEST_INPUT = 1e4  # more than any number in a backbone's vectors
LARGEST = float(np.finfo(np.float32).max)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / np.sqrt(2, dtype=np.float32))),
}


def _erf(x: Array) -> Array:
    import torch

    return torch.erf(torch.from_numpy(np.ascontiguousarray(x))).numpy()  # numpy has no erf


def softmax(x: Array) -> Array:
    """Over the last axis."""
    exponentials: Array = np.exp(x - x.max(axis=-1, keepdims=True))
    total: Array = exponentials.sum(axis=-1, keepdims=True)
    return np.divide(exponentials, total)


def unit(x: Array) -> Array:
    """L2-normalised over the last axis; the zero vector stays zero."""
    norms: Array = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.divide(x, np.maximum(norms, 1e-12))


class Head:
    """Linear layers with an activation between them; x: [..., h] -> [..., outputs]."""

    def __init__(self, file: Path, activation: str, hidden: int, outputs: int = -1) -> None:
        import torch

        from fmplex_backend.weights import cast, read_safetensors

        tensors = {
            name: cast(file, name, tensor, torch.float32).numpy()
            for name, tensor in read_safetensors(file, partial(_check_head, file, hidden, outputs)).items()
        }
        self.layers: list[tuple[Array, Array]] = [
            (tensors[f"{prefix}weight"].T.copy(), tensors[f"{prefix}bias"])
            for prefix in _layer_prefixes(file, set(tensors))
        ]
        self.outputs = len(self.layers[-1][1])
        self.activation = ACTIVATIONS[activation]
        self._expect_no_overflow(file, bounded=activation == "tanh")

    def _expect_no_overflow(self, file: Path, *, bounded: bool) -> None:
        """Raise TaskRefused where float32 may not hold what a layer makes of the vectors of a backbone."""
        largest = LARGEST_INPUT
        for number, (weight, bias) in enumerate(self.layers):
            sums = np.abs(weight).sum(axis=0, dtype=np.float64) * largest + np.abs(bias, dtype=np.float64)
            largest = float(sums.max(initial=0.0))
            if largest > LARGEST:
                name = f"{number}.weight" if len(self.layers) > 1 else "weight"
                problem = (
                    f"numbers this large overflow: up to {largest:.0e} can come out, float32 ends at {LARGEST:.0e}"
                )
                raise TaskRefused(file, name, problem, "Train the head again")
            largest = 1.0 if bounded else largest

    def __call__(self, x: Array) -> Array:
        for position, (weight, bias) in enumerate(self.layers):
            x = (self.activation(x) if position else x) @ weight + bias
        return x


def _check_head(file: Path, hidden: int, outputs: int, header: Header) -> None:
    """Raise TaskRefused where a file does not hold a head for vectors of that width (-1: any number of outputs)."""
    expect_floats(file, header)
    prefixes, width = _layer_prefixes(file, set(header)), hidden
    for prefix in prefixes:
        weight, bias = header[f"{prefix}weight"], header[f"{prefix}bias"]
        wanted = outputs if prefix == prefixes[-1] else -1
        expect_shape(file, f"{prefix}weight", weight, (wanted, width), "the head")
        width = weight.shape[0]
        expect_shape(file, f"{prefix}bias", bias, (width,), "the head")


def _layer_prefixes(file: Path, names: set[str]) -> list[str]:
    """What precedes a layer's tensor names: [""] for one layer, ["0.", "1.", ...] for several."""
    prefixes = [""] if "weight" in names else [f"{n}." for n in range(len(names) // 2)]
    wanted = {f"{prefix}{part}" for prefix in prefixes for part in ("weight", "bias")}
    if names != wanted or not wanted:
        raise TaskRefused(
            file,
            some(names ^ wanted) or "(whole file)",
            f"a head holds weight and bias (or 0.weight, 0.bias, 1.weight, ...), this file {some(names) or 'nothing'}",
            "Save the head's tensors under those names",
        )
    return prefixes


def output_width(file: Path) -> int:
    """The number of a saved head's outputs, read from the file's header alone; raises TaskRefused."""
    header = read_header(file)
    _check_head(file, -1, -1, header)
    return header[f"{_layer_prefixes(file, set(header))[-1]}weight"].shape[0]


@dataclass(config=CHECKED, frozen=True)
class HeadDecoder(Weighted):
    """A kind whose weights are a head: linear layers, `weight`/`bias` or `0.weight`, `0.bias`, `1.weight`, ...

    `hidden` are the widths of the hidden layers, `activation` is applied between layers.
    """

    hidden: TrainingOnly[Sequence[int]] = ()
    activation: Activation = "tanh"
    dropout: TrainingOnly[float] = field(default=0.1, kw_only=True)

    @property
    def width(self) -> int:
        """The number of the head's outputs: one a label by default."""
        return len(self.label_names)

    def load_head(self, directory: Path, hidden: int, outputs: int = -1) -> Head:
        """The served head; raises TaskRefused where its shapes do not fit (-1: any number of outputs)."""
        return Head(directory / self.weights, self.activation, hidden, outputs)

    def as_saved(self, tensors: Mapping[str, Tensor]) -> Self:
        layers = [each for name, each in sorted(tensors.items()) if name.endswith("weight") and each.dim() == 2]
        return replace(self, hidden=tuple(layer.shape[0] for layer in layers[:-1]))

    def trainable(self, hidden: int, class_weights: Tensor | None = None) -> TrainableHead:
        from fmplex_backend.decoders.trainable import Layers, TrainableHead

        layers = Layers((hidden, *self.hidden, self.width), self.activation, self.dropout)
        return TrainableHead(
            layers,
            reads=self.reads,
            normalize=bool(getattr(self, "normalize", False)),
            loss=lambda values, targets: self.loss(values, targets, class_weights),
            stack=self.stack,
        )

    def loss(self, values: Tensor, targets: Tensor, class_weights: Tensor | None) -> Tensor:
        """The training loss, a scalar: values [n, width] compared with stacked targets."""
        raise NotImplementedError

    def stack(self, targets: Sequence[Any]) -> torch.Tensor:
        """The targets of several rows as one tensor, for `loss`."""
        raise NotImplementedError


@dataclass(config=CHECKED, frozen=True)
class PooledHeadDecoder(HeadDecoder):
    """A head on an item's pooled vector, which is L2-normalised first if `normalize` is set."""

    pooling: Pooling = "mean"
    normalize: bool = False

    def vectors(self, encoded: Encoded) -> Array:
        """What the head reads, [n, h]."""
        return unit(encoded.vectors) if self.normalize else encoded.vectors
