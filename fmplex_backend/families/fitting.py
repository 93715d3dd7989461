"""What fitting needs whatever the family, and rows -> vectors of an encoder, as the server computes them.

Imported only when fitting.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

BATCH = 64


def autocast(wanted: str, device: torch.device) -> Any:
    """The context manager of a step's forward pass: to bfloat16 where it is asked for, or with "auto" on a GPU."""
    if wanted == "bfloat16" or (wanted == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


class PooledExample(Protocol):
    """A row ready for the backbone."""

    @property
    def length(self) -> int:
        """Tokens: rows of like length are batched together."""

    @property
    def rows(self) -> int:
        """Vectors it gives."""


ExampleT = TypeVar("ExampleT", bound=PooledExample)


class LearnsNothing:
    """What a task's encoder without weights is while the task is fitted."""

    module = None

    def observe(self, examples: Sequence[Any]) -> None:
        """There is nothing to learn from them."""

    def tensors(self) -> dict[str, Tensor]:
        """None."""
        return {}


class PooledFeatures(ABC, Generic[ExampleT]):
    """A model and a way of pooling.

    Args:
        bare: the backbone.
        model: the backbone with the adapter that is being fitted; the same as `bare` where there is none.
        reads: mean, cls or max over tokens, or TOKENS: several vectors an example.
    """

    def __init__(self, bare: Any, model: Any, reads: str, device: torch.device) -> None:
        self.bare, self.model, self.reads, self.device = bare, model, reads, device

    @abstractmethod
    def through(self, model: Any, examples: Sequence[ExampleT]) -> Tensor:
        """A batch through a model: [rows, h]."""

    def vectors(self, examples: Sequence[ExampleT]) -> Tensor:
        """[rows, h] through the model, with gradients."""
        return self.through(self.model, examples)

    def every(self, examples: Sequence[ExampleT]) -> Tensor:
        """Any number of examples through the model."""
        return self._all(self.model, examples)

    def fixed(self, examples: Sequence[ExampleT]) -> Tensor:
        """Any number of examples through the bare backbone."""
        return self._all(self.bare, examples)

    def places(self, examples: Sequence[ExampleT]) -> list[Tensor]:
        """For each example, the indices of its rows in what `fixed` returns."""
        ends = torch.tensor([each.rows for each in examples]).cumsum(0)
        return [torch.arange(int(end) - each.rows, int(end)) for end, each in zip(ends, examples, strict=True)]

    def precision(self, wanted: str) -> Any:
        """See `autocast`."""
        return autocast(wanted, self.device)

    def _all(self, model: Any, examples: Sequence[ExampleT]) -> Tensor:
        """Vectors in the order of the examples, computed in batches of about equal lengths."""
        order = sorted(range(len(examples)), key=lambda place: examples[place].length)
        parts: list[Tensor] = [torch.empty(0)] * len(examples)
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                chosen = order[start : start + BATCH]
                values = self.through(model, [examples[place] for place in chosen]).float()
                sizes = [examples[place].rows for place in chosen]
                for place, part in zip(chosen, torch.split(values, sizes), strict=True):
                    parts[place] = part
        return torch.cat(parts)
