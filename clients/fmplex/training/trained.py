"""What a fitting is and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fmplex.task.adapters import AdapterState
from fmplex.training.state import History
from fmplex_backend.decoders import Decoder


@dataclass(frozen=True, slots=True)
class TrainedWeights:
    """The result of a fitting: the adapter, and by their names in the files the tensors of the other parts."""

    adapter: AdapterState | None = None
    head: dict[str, Tensor] = field(default_factory=dict)
    encoder: dict[str, Tensor] = field(default_factory=dict)
    confidence: dict[str, Tensor] = field(default_factory=dict)


class Training(Protocol):
    """A fitting that is ready to run."""

    decoder: Decoder  # with its labels
    history: History
    compares: bool  # whether the head is first fitted on the bare backbone, where it could be served by itself
    alone: dict[str, Tensor]  # that head's tensors, after `run`

    @property
    def work(self) -> float:
        """All of `run`, in rows through the backbone."""

    def run(self) -> TrainedWeights:
        """Fit, and return the weights; raises TaskProblem where the loss is not finite."""

    def notes(self) -> dict[str, float | int | str]:
        """For the metrics of task.json."""
