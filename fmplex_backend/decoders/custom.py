"""The base class of decoders that installed packages bring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy.typing as npt
from torch import Tensor, nn


class CustomDecoder(nn.Module):
    """A torch module over pooled vectors, and how its values become output tensors.

    Requests are decoded by several threads at a time: `forward` and `outputs` keep nothing between calls.
    `pooling` is mean, cls or max; `gives` names the outputs, some of EMBEDDING, SCORES and LABEL. A subclass takes
    `options` (those of task.json) and `hidden`, the width of the vectors.
    """

    pooling: ClassVar[str] = "mean"
    gives: ClassVar[tuple[str, ...]] = ("SCORES",)

    def __init__(self, options: Mapping[str, Any], hidden: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Pooled vectors [n, hidden] -> values [n, ...]."""
        raise NotImplementedError

    def outputs(self, values: Tensor) -> dict[str, npt.NDArray[Any]]:
        """Values -> tensors by name (`gives`), batch first."""
        raise NotImplementedError

    def sizes(self) -> dict[str, int]:
        """The last dim of each output that has a fixed one."""
        return {}

    def targets(self, labels: Sequence[Any]) -> Tensor:
        """The labels given to `fit`, as the tensor that `loss` compares values with."""
        raise NotImplementedError

    def loss(self, values: Tensor, targets: Tensor) -> Tensor:
        """The training loss: a scalar."""
        raise NotImplementedError
