"""Fitting a task's adapter and head on a frozen backbone: `prepare` makes a Trainer, its `run` returns TrainedWeights.

`Trainer.run` is the whole of it: fit the head on the bare backbone first, then run epochs of steps, measure the loss on
the validation rows after each, and keep the best epoch's weights. On one machine, a seed and a number of threads give
the same weights again, and so does a run that resumes from a checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fmplex.task.adapters import AdapterState
from fmplex.training.checkpoints import Checkpoint
from fmplex.training.examples import Examples, batches, in_portions
from fmplex.training.interrupt import Interrupted, InterruptHeld
from fmplex.training.options import FitOptions
from fmplex.training.progress import Progress
from fmplex.training.state import History, State
from fmplex.training.trained import TrainedWeights
from fmplex_backend.decoders import Decoder
from fmplex_backend.decoders.confidence import Sample
from fmplex_backend.decoders.trainable import TrainableHead, fit_linear
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.spec import Features, FittingInputs

LINEAR_DECAY = 3e-3  # weight decay of a linear head on fixed vectors
CHECKPOINT_STEPS = 50  # between two checkpoints within an epoch
STEP_ROWS = 3.0  # what a row costs in a step, forward and backward, in rows through the backbone


@dataclass
class Trainer:
    """One fitting of a head, and maybe of an adapter and an encoder, to training rows.

    `parameters` are the adapter's and the encoder's, by their names in checkpoints. Without any, the head alone is
    fitted, to vectors that are computed once.
    """

    decoder: Decoder
    features: Features
    head: TrainableHead
    inputs: FittingInputs
    parameters: Mapping[str, nn.Parameter]
    train_head: bool
    warm_start: bool  # whether the head is first fitted on the bare backbone
    adapted: bool  # whether the model has an adapter in it
    compares: bool
    learning_rate: float
    options: FitOptions
    training: Examples
    validation: Examples | None
    outside: Examples = field(default_factory=lambda: Examples([], []))  # rows that the task is to reject
    checkpoint: Checkpoint | None = None
    progress: Progress = field(default_factory=Progress)
    history: History = field(default_factory=History)
    alone: dict[str, Tensor] = field(default_factory=dict)  # that head's tensors

    @property
    def work(self) -> float:
        """All of `run`, in rows through the backbone."""
        held, rows = len(self.validation or ()), len(self.training)
        if self.decoder.fits_confidence:
            return self._fitting_work + rows + held + len(self.outside)
        return self._fitting_work

    @property
    def _fitting_work(self) -> float:
        held, rows = len(self.validation or ()), len(self.training)
        if not self.parameters:
            return rows + held
        warm = rows + held if self._warms_up else 0
        return warm + held + self.options.epochs * self._epoch_work

    @property
    def _step_work(self) -> float:
        """Of a row in a step; vectors that are computed once take none."""
        return STEP_ROWS if self.parameters else 0.0

    @property
    def _epoch_work(self) -> float:
        return len(self.training) * self._step_work + (len(self.validation or ()) if self.parameters else 0)

    @property
    def _warms_up(self) -> bool:
        return self.warm_start and self.head.linear is not None

    def run(self) -> TrainedWeights:
        """Fit; the modules hold the returned weights too."""
        start = time.monotonic()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            if not self.parameters:
                self._fit_head()
            else:
                self._fit_adapter()
        self.history.seconds += time.monotonic() - start
        self.head.module.eval()
        adapter = AdapterState.of(self.features.model) if self.adapted else None
        confidence = self._confidence() if self.decoder.fits_confidence else {}
        return TrainedWeights(adapter, self.head.tensors(), self.inputs.tensors(), confidence)

    def notes(self) -> dict[str, float | int | str]:
        """For the metrics of task.json."""
        return {"train_rows": len(self.training), "seed": self.options.seed} | self.history.notes()

    # -- the head alone

    def _fit_head(self) -> None:
        self.progress.phase("features")
        vectors = self._fixed(self.training)
        held = self._fixed(self.validation) if self.validation else None
        targets = self._targets(self.training)
        if self.head.linear is not None:
            self.progress.phase("head")
            fit_linear(self.head, vectors, targets, LINEAR_DECAY)
            self._note_fixed(vectors, targets, held)
            return
        places = self.features.places(self.training.inputs)
        self._epochs(lambda batch: vectors[torch.cat([places[n] for n in batch])], held)

    def _note_fixed(self, vectors: Tensor, targets: Tensor, held: Tensor | None) -> None:
        with torch.inference_mode():
            self.history.training.append(float(self.head.loss(self.head.values(vectors), targets)))
        if held is not None:
            self._note_validation(*self._validate(held))
            self.history.best_epoch = 1

    # -- adapter and head together

    def _fit_adapter(self) -> None:
        if self._warms_up and self._resuming():
            self.progress.skip(len(self.training) + len(self.validation or ()))
        elif self._warms_up:
            # A new adapter adds nothing yet; a fitted head gives it useful gradients from the first step on.
            self.progress.phase("features")
            vectors = self._fixed(self.training)
            self.progress.phase("head")
            fit_linear(self.head, vectors, self._targets(self.training), LINEAR_DECAY)
            if self.validation:
                loss, figure = self._validate(self._fixed(self.validation))
                self.history.head_only = loss
                if figure is not None:
                    self.history.figure, self.history.head_only_figure = figure
            if self.compares:
                self.alone = self.head.tensors()
        self._epochs(lambda batch: self.features.vectors([self.training.inputs[n] for n in batch]), None)

    def _resuming(self) -> bool:
        return self.checkpoint is not None and self.checkpoint.exists()

    # -- what it is to reject

    def _confidence(self) -> dict[str, Tensor]:
        self.progress.phase("confidence")
        training = self._sample(self.training)
        held = self._sample(self.validation) if self.validation else None
        outside = self._sample(self.outside) if self.outside else None
        return self.decoder.confidence_of(training, self.training.targets, held, outside)

    def _sample(self, examples: Examples) -> Sample:
        """Rows through the fitted model, as they are served."""
        vectors = in_portions(self.features.every, examples, self.progress)
        if self.head.normalize:
            vectors = nn.functional.normalize(vectors, dim=-1)
        with torch.inference_mode():
            values = self.head.module(vectors).cpu().numpy()
        return Sample(vectors.cpu().numpy(), values, examples.targets)

    # -- epochs of steps

    def _epochs(self, vectors_of: Callable[[list[int]], Tensor], held: Tensor | None) -> None:
        state = self._state()
        if self.validation:
            self.progress.phase("validation")
            state.keep_best(0, self._validate(held)[0])
        if self.checkpoint:
            self.checkpoint.restore(state)
            self.alone = state.alone
            self.progress.skip(self._epoch_work * state.epoch + self._step_work * state.batch * self.options.batch_size)
        with InterruptHeld(self.checkpoint is not None) as interrupt:
            while state.epoch < self.options.epochs and not self.history.stopped_early:
                self._epoch(state, vectors_of, interrupt)
                self._end_epoch(state, held)
                self._stop_if(interrupt, state)
        self.progress.skip(self._epoch_work * (self.options.epochs - state.epoch))
        if self.validation:
            state.restore_best()
        if self.checkpoint:
            self.checkpoint.remove()

    @property
    def _batches(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.training) // self.options.batch_size)

    def _state(self) -> State:
        named = dict(self.parameters)
        if self.train_head:
            named |= {f"head.{name}": each for name, each in self.head.module.named_parameters()}
        optimizer = torch.optim.AdamW(named.values(), lr=self.learning_rate, weight_decay=self.options.weight_decay)
        updates = self.options.epochs * -(-self._batches // self.options.accumulation)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: _rate(n, updates, self.options.warmup))
        state = State(named, self.head.module, optimizer, schedule, self.history)
        state.alone = self.alone
        return state

    def _epoch(self, state: State, vectors_of: Callable[[list[int]], Tensor], interrupt: InterruptHeld) -> None:
        self.progress.phase(f"epoch {state.epoch + 1} of {self.options.epochs}")
        self.head.module.train()
        order = batches(self.training, self.options, state.epoch)
        for number in range(state.batch, len(order)):
            loss = self._loss(state, order[number], vectors_of)
            (loss / self.options.accumulation).backward()
            self.history.steps.append(float(loss.detach()))
            if (number + 1) % self.options.accumulation == 0 or number + 1 == len(order):
                state.update()
            state.batch = number + 1
            self.progress.advance(self._step_work * len(order[number]), self.history.steps[-1])
            if self.checkpoint and state.batch % self.options.accumulation == 0:
                self._stop_if(interrupt, state)
                if state.batch % CHECKPOINT_STEPS == 0:
                    self.checkpoint.write(state)

    def _loss(self, state: State, batch: list[int], vectors_of: Callable[[list[int]], Tensor]) -> Tensor:
        """That of a step; raises TaskProblem where it is not finite."""
        with self.features.precision(self.options.precision):
            values = self.head.values(vectors_of(batch))
            loss = self.head.loss(values.float(), self._targets(self.training.pick(batch)))
        if not math.isfinite(float(loss.detach())):
            raise TaskProblem(
                f"the loss is {float(loss.detach())} in epoch {state.epoch + 1}, step {state.batch + 1}. Lower "
                f"learning_rate (it is {self.learning_rate:g}), or check the rows"
            )
        return loss

    def _end_epoch(self, state: State, held: Tensor | None) -> None:
        self.head.module.eval()
        own = self.history.steps[-state.batch :]
        self.history.training.append(sum(own) / len(own))
        state.epoch, state.batch = state.epoch + 1, 0
        if self.validation:
            loss, figure = self._validate(held)
            self._note_validation(loss, figure)
            if loss < state.best_loss:
                state.keep_best(state.epoch, loss)
            elif state.epoch - self.history.best_epoch >= self.options.patience:
                self.history.stopped_early = True
        if self.checkpoint:
            self.checkpoint.write(state)

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

    # -- the validation rows

    def _validate(self, vectors: Tensor | None) -> tuple[float, tuple[str, float] | None]:
        """Their loss, and their figure where the decoder has one; `vectors` are theirs where those do not change."""
        assert self.validation
        self.head.module.eval()
        targets = self._targets(self.validation)
        with torch.inference_mode():
            if vectors is None:
                vectors = in_portions(self.features.every, self.validation, self.progress)
            values = self.head.values(vectors)
            found = float(self.head.loss(values, targets)), self.decoder.figure_of(values, targets)
        self.progress.validated(*found)
        return found

    def _note_validation(self, loss: float, figure: tuple[str, float] | None) -> None:
        self.history.validation.append(loss)
        if figure is not None:
            self.history.figure, value = figure
            self.history.figures.append(value)

    def _fixed(self, examples: Examples) -> Tensor:
        return in_portions(self.features.fixed, examples, self.progress)

    def _targets(self, examples: Examples) -> Tensor:
        return self.head.stack(examples.targets).to(self.features.device)


def _rate(update: int, updates: int, warmup: float) -> float:
    """The learning rate's factor at an update: linear warm-up, then linear decay to 0."""
    warm = max(1, int(updates * warmup))
    return (update + 1) / warm if update < warm else max(0.0, (updates - update) / max(1, updates - warm))
