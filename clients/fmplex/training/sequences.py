"""Fitting an adapter to the loss of whole sequences, which a family computes: language models."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fmplex.task.adapters import AdapterState, set_dropout
from fmplex.training.checkpoints import Checkpoint
from fmplex.training.epochs import Epochs, Figure
from fmplex.training.examples import PORTION, Examples
from fmplex.training.options import FitOptions
from fmplex.training.progress import Progress
from fmplex.training.state import History
from fmplex.training.trained import TrainedWeights
from fmplex_backend.decoders import Decoder
from fmplex_backend.decoders.rows import Rows
from fmplex_backend.families.spec import SequenceInputs, SequenceLosses


def sequence_examples(inputs: SequenceInputs, decoder: Decoder, rows: Rows) -> Examples:
    """Rows as sequences, whose targets are the answers; raises TaskProblem."""
    return Examples(inputs.examples(rows), decoder.targets(rows))


def mean_loss(losses: SequenceLosses, examples: Sequence[Any], progress: Progress) -> float:
    """Over all tokens of the answers to any number of rows."""
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(examples), PORTION):
            portion = examples[start : start + PORTION]
            for loss, count in losses.losses(portion):
                total, tokens = total + float(loss), tokens + count
            progress.advance(len(portion))
    return total / tokens


@dataclass
class SequenceTraining:
    """One fitting of an adapter, by the mean loss of an update's tokens: long answers weigh as many short ones.

    It is the `Objective` of its own epochs.
    """

    decoder: Decoder
    losses: SequenceLosses
    learning_rate: float
    options: FitOptions
    training: Examples
    validation: Examples | None
    checkpoint: Checkpoint | None
    progress: Progress
    history: History = field(default_factory=History)
    compares: bool = False
    alone: dict[str, Tensor] = field(default_factory=dict)

    @property
    def work(self) -> float:
        """All of `run`, in rows through the backbone."""
        return self._epochs().work

    def run(self) -> TrainedWeights:
        """Fit; the model holds the returned weights too."""
        start = time.monotonic()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            self._epochs().run()
        self.history.seconds += time.monotonic() - start
        self.set_training(False)
        return TrainedWeights(AdapterState.of(self.losses.model))

    def notes(self) -> dict[str, float | int | str]:
        """For the metrics of task.json."""
        return {"train_rows": len(self.training), "seed": self.options.seed} | self.history.notes()

    def _epochs(self) -> Epochs:
        named = {f"adapter.{name}": each for name, each in self.losses.model.named_parameters() if each.requires_grad}
        return Epochs(
            self,
            named,
            self.training,
            bool(self.validation),
            self.learning_rate,
            self.options,
            self.checkpoint,
            self.progress,
            self.history,
            held_work=len(self.validation or ()),
        )

    def set_training(self, on: bool) -> None:
        set_dropout(self.losses.model, on)

    def step(self, batch: Sequence[int], update: Sequence[Sequence[int]]) -> float:
        examples: Sequence[Any] = self.training.inputs
        everyone = sum(examples[row].counted for step in update for row in step)
        total, tokens = 0.0, 0
        for loss, count in self.losses.losses([examples[row] for row in batch], self.options.precision):
            (loss / everyone).backward()
            total, tokens = total + float(loss.detach()), tokens + count
        return total / tokens

    def validate(self) -> tuple[float, Figure | None]:
        assert self.validation
        loss = mean_loss(self.losses, self.validation.inputs, self.progress)
        figure = next(iter(self.decoder.figures_of_loss(loss).items()), None)
        if figure is not None and not self.history.steps:
            self.history.figure, self.history.untrained_figure = figure
        return loss, figure
