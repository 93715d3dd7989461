"""Epochs of steps, whatever these minimise: updates, early stopping, checkpoints, and Ctrl-C between two updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from fmplex.training.checkpoints import Checkpoint
from fmplex.training.examples import Examples, batches
from fmplex.training.interrupt import Interrupted, InterruptHeld
from fmplex.training.options import FitOptions
from fmplex.training.progress import Progress
from fmplex.training.state import History, State
from fmplex_backend.errors import TaskProblem

CHECKPOINT_STEPS = 50  # between two checkpoints within an epoch
STEP_ROWS = 3.0  # what a row costs in a step, forward and backward, in rows through the backbone
Figure = tuple[str, float]  # a figure's name and value


class Objective(Protocol):
    """What steps minimise. A step is so many training rows, by their indices."""

    def set_training(self, on: bool) -> None:
        """Let dropout take part, or not."""

    def step(self, batch: Sequence[int], update: Sequence[Sequence[int]]) -> float:
        """Add the gradients of a step; returns its loss.

        Args:
            update: the steps whose gradients make one update together, this one among them.
        """

    def validate(self) -> tuple[float, Figure | None]:
        """The validation rows' loss, and their figure where there is one."""


@dataclass
class Epochs:
    """The loop: up to `options.epochs` epochs, of which the best one's weights are kept.

    Args:
        named: what is fitted, by its names in checkpoints.
        step_work: of a row in a step, in rows through the backbone.
        held_work: of the validation rows, likewise.
        alone: tensors that checkpoints hold beside the state, see `Training.alone`.
    """

    objective: Objective
    named: Mapping[str, nn.Parameter]
    training: Examples
    validates: bool
    learning_rate: float
    options: FitOptions
    checkpoint: Checkpoint | None
    progress: Progress
    history: History
    step_work: float = STEP_ROWS
    held_work: float = 0.0
    alone: dict[str, Tensor] = field(default_factory=dict)

    @property
    def work(self) -> float:
        """All of `run`, in rows through the backbone."""
        return self.held_work + self.options.epochs * self._epoch_work

    @property
    def _epoch_work(self) -> float:
        return len(self.training) * self.step_work + self.held_work

    def run(self) -> None:
        """The parameters hold the weights that are kept."""
        state = self._state()
        if self.validates:
            self.progress.phase("validation")
            state.keep_best(0, self._validate()[0])
        if self.checkpoint:
            self.checkpoint.restore(state)
            self.alone = state.alone
            self.progress.skip(self._epoch_work * state.epoch + self.step_work * state.batch * self.options.batch_size)
        with InterruptHeld(self.checkpoint is not None) as interrupt:
            while state.epoch < self.options.epochs and not self.history.stopped_early:
                self._epoch(state, interrupt)
                self._end_epoch(state)
                self._stop_if(interrupt, state)
        self.progress.skip(self._epoch_work * (self.options.epochs - state.epoch))
        if self.validates:
            state.restore_best()
        if self.checkpoint:
            self.checkpoint.remove()

    @property
    def _batches(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.training) // self.options.batch_size)

    def _state(self) -> State:
        optimizer = torch.optim.AdamW(
            self.named.values(), lr=self.learning_rate, weight_decay=self.options.weight_decay
        )
        updates = self.options.epochs * -(-self._batches // self.options.accumulation)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: _rate(n, updates, self.options.warmup))
        state = State(self.named, optimizer, schedule, self.history)
        state.alone = self.alone
        return state

    def _epoch(self, state: State, interrupt: InterruptHeld) -> None:
        self.progress.phase(f"epoch {state.epoch + 1} of {self.options.epochs}")
        self.objective.set_training(True)
        order, accumulation = batches(self.training, self.options, state.epoch), self.options.accumulation
        for number in range(state.batch, len(order)):
            first = number - number % accumulation
            loss = self.objective.step(order[number], order[first : first + accumulation])
            self._check_finite(loss, state)
            self.history.steps.append(loss)
            if (number + 1) % accumulation == 0 or number + 1 == len(order):
                state.update()
            state.batch = number + 1
            self.progress.advance(self.step_work * len(order[number]), loss)
            if self.checkpoint and state.batch % accumulation == 0:
                self._stop_if(interrupt, state)
                if state.batch % CHECKPOINT_STEPS == 0:
                    self.checkpoint.write(state)

    def _check_finite(self, loss: float, state: State) -> None:
        if not math.isfinite(loss):
            raise TaskProblem(
                f"the loss is {loss} in epoch {state.epoch + 1}, step {state.batch + 1}. Lower "
                f"learning_rate (it is {self.learning_rate:g}), or check the rows"
            )

    def _end_epoch(self, state: State) -> None:
        self.objective.set_training(False)
        own = self.history.steps[-state.batch :]
        self.history.training.append(sum(own) / len(own))
        state.epoch, state.batch = state.epoch + 1, 0
        if self.validates:
            loss, figure = self._validate()
            self.history.note_validation(loss, figure)
            if loss < state.best_loss:
                state.keep_best(state.epoch, loss)
            elif state.epoch - self.history.best_epoch >= self.options.patience:
                self.history.stopped_early = True
        if self.checkpoint:
            self.checkpoint.write(state)

    def _validate(self) -> tuple[float, Figure | None]:
        self.objective.set_training(False)
        found = self.objective.validate()
        self.progress.validated(*found)
        return found

    def _stop_if(self, interrupt: InterruptHeld, state: State) -> None:
        """After Ctrl-C, write a checkpoint and raise Interrupted; only between two updates."""
        if not (interrupt.came and self.checkpoint):
            return
        self.checkpoint.write(state)
        done = f"after {state.epoch} of {self.options.epochs} epochs"
        if state.batch:
            done = f"in epoch {state.epoch + 1} of {self.options.epochs}, step {state.batch} of {self._batches}"
        raise Interrupted(
            f"interrupted {done}. It goes on from the checkpoint {self.checkpoint.directory} when the same is asked "
            "for again"
        )


def _rate(update: int, updates: int, warmup: float) -> float:
    """The learning rate's factor at an update: linear warm-up, then linear decay to 0."""
    warm = max(1, int(updates * warmup))
    return (update + 1) / warm if update < warm else max(0.0, (updates - update) / max(1, updates - warm))
