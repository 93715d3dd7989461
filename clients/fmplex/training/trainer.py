"""Fitting a task's adapter and head on a frozen backbone: `prepare` makes a Trainer, its `run` returns TrainedWeights.

`Trainer.run` is the whole of it: fit the head on the bare backbone first, then run epochs of steps, measure the loss on
the validation rows after each, and keep the best epoch's weights. On one machine, a seed and a number of threads give
the same weights again, and so does a run that resumes from a checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fmplex.task.adapters import AdapterState, set_dropout
from fmplex.training.checkpoints import Checkpoint
from fmplex.training.epochs import STEP_ROWS, Epochs, Figure
from fmplex.training.examples import Examples, in_portions
from fmplex.training.options import FitOptions
from fmplex.training.progress import Progress
from fmplex.training.state import History
from fmplex.training.trained import TrainedWeights
from fmplex_backend.decoders import Decoder
from fmplex_backend.decoders.confidence import Sample
from fmplex_backend.decoders.trainable import TrainableHead, fit_linear
from fmplex_backend.families.spec import Features, FittingInputs

LINEAR_DECAY = 3e-3  # weight decay of a linear head on fixed vectors


@dataclass
class Trainer:
    """One fitting of a head, and maybe of an adapter and an encoder, to training rows.

    `parameters` are the adapter's and the encoder's, by their names in checkpoints. Without any, the head alone is
    fitted, to vectors that are computed once. It is the `Objective` of its own epochs.
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
    _held: Tensor | None = None  # the validation rows' vectors, where those do not change

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
        return (rows + held if self._warms_up else 0) + self._epochs().work

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
        self.set_training(False)
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
        self._held = self._fixed(self.validation) if self.validation else None
        targets = self._targets(self.training)
        if self.head.linear is not None:
            self.progress.phase("head")
            fit_linear(self.head, vectors, targets, LINEAR_DECAY)
            self._note_fixed(vectors, targets)
            return
        places = self.features.places(self.training.inputs)
        self._run_epochs(lambda batch: vectors[torch.cat([places[n] for n in batch])])

    def _note_fixed(self, vectors: Tensor, targets: Tensor) -> None:
        with torch.inference_mode():
            self.history.training.append(float(self.head.loss(self.head.values(vectors), targets)))
        if self._held is not None:
            found = self._compared(self._held)
            self.progress.validated(*found)
            self.history.note_validation(*found)
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
                loss, figure = self._compared(self._fixed(self.validation))
                self.progress.validated(loss, figure)
                self.history.head_only = loss
                if figure is not None:
                    self.history.figure, self.history.head_only_figure = figure
            if self.compares:
                self.alone = self.head.tensors()
        self._run_epochs(lambda batch: self.features.vectors([self.training.inputs[n] for n in batch]))

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

    def _run_epochs(self, vectors_of: Callable[[Sequence[int]], Tensor]) -> None:
        self._vectors_of = vectors_of
        epochs = self._epochs()
        epochs.run()
        self.alone = epochs.alone

    def _epochs(self) -> Epochs:
        named = dict(self.parameters)
        if self.train_head:
            named |= {f"head.{name}": each for name, each in self.head.module.named_parameters()}
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
            step_work=STEP_ROWS if self.parameters else 0.0,  # vectors that are computed once take none
            held_work=len(self.validation or ()) if self.parameters else 0.0,
            alone=self.alone,
        )

    def set_training(self, on: bool) -> None:
        self.head.module.train(on)
        set_dropout(self.features.model, on)

    def step(self, batch: Sequence[int], update: Sequence[Sequence[int]]) -> float:
        with self.features.precision(self.options.precision):
            values = self.head.values(self._vectors_of(batch))
            loss = self.head.loss(values.float(), self._targets(self.training.pick(batch)))
        (loss / self.options.accumulation).backward()
        return float(loss.detach())

    def validate(self) -> tuple[float, Figure | None]:
        assert self.validation
        vectors = self._held
        if vectors is None:
            vectors = in_portions(self.features.every, self.validation, self.progress)
        return self._compared(vectors)

    def _compared(self, vectors: Tensor) -> tuple[float, Figure | None]:
        """The loss and the figure of the validation rows, whose vectors these are."""
        assert self.validation
        self.head.module.eval()
        targets = self._targets(self.validation)
        with torch.inference_mode():
            values = self.head.values(vectors)
            return float(self.head.loss(values, targets)), self.decoder.figure_of(values, targets)

    def _fixed(self, examples: Examples) -> Tensor:
        return in_portions(self.features.fixed, examples, self.progress)

    def _targets(self, examples: Examples) -> Tensor:
        return self.head.stack(examples.targets).to(self.features.device)
