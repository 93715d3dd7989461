"""Fitting a task's adapter and head on a frozen backbone.

`Fit.run` is the whole of it: warm the head up on the bare backbone, then epochs of steps, each epoch's loss on the
validation rows, the best epoch's weights in the end. On one machine, a seed and a number of threads give the same
weights again, and so does a run that was killed and taken up at its last checkpoint.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fmplex.checkpoints import Checkpoint
from fmplex.errors import TaskProblem
from fmplex.features import Encoded, Features
from fmplex.heads import Head, PluginHead, fit_linear
from fmplex.progress import Progress
from fmplex.state import History, State

POOL_BATCHES = 40  # texts are sorted by length within so many batches' worth at a time: little of a batch is padding
CLIP = 1.0
DECAY_OF_FIXED = 3e-3  # of a linear head on fixed vectors
CHECKPOINT_STEPS = 50


@dataclass(frozen=True, slots=True)
class Settings:
    """How a task is fitted.

    Args:
        epochs: at most; early stopping may end before.
        learning_rate: of the adapter and the head; one that suits the adapter's kind by default.
        batch_size: texts of a step; `accumulation` steps make one update.
        warmup: part of all updates in which the rate rises; it then falls to nothing.
        patience: epochs without a better validation loss after which it ends.
        precision: "auto" is bfloat16 on a GPU, float32 elsewhere.
    """

    epochs: int = 3
    learning_rate: float | None = None
    batch_size: int = 32
    accumulation: int = 1
    warmup: float = 0.1
    weight_decay: float = 0.01
    patience: int = 2
    seed: int = 0
    precision: str = "auto"

    def check(self) -> None:
        """Raise TaskProblem where one is out of range."""
        for name in ("epochs", "batch_size", "accumulation", "patience"):
            if getattr(self, name) < 1:
                raise TaskProblem(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.warmup < 1:
            raise TaskProblem(f"warmup is {self.warmup}; it is a part of all updates, from 0 to less than 1")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise TaskProblem(f"learning_rate is {self.learning_rate}; try 0.001")
        if self.precision not in ("auto", "bfloat16", "float32"):
            raise TaskProblem(f"precision is {self.precision!r}; it must be auto, bfloat16 or float32")


@dataclass(slots=True)
class Examples:
    """Texts as tokens, and what they should give."""

    encoded: list[Encoded]
    targets: list[Any]

    def __len__(self) -> int:
        return len(self.targets)

    def pick(self, places: Sequence[int]) -> Examples:
        """Some of them."""
        return Examples([self.encoded[place] for place in places], [self.targets[place] for place in places])


@dataclass
class Fit:
    """One fitting: the vectors of texts (through the backbone and maybe an adapter), a head, and rows.

    `parameters` are the adapter's and the encoder's, named as checkpoints have them; empty where the head alone is
    fitted: vectors are then computed once.
    """

    features: Features
    head: Head | PluginHead
    parameters: Mapping[str, nn.Parameter]
    train_head: bool
    warm: bool  # set the head out from one fitted on the bare backbone
    rate: float
    settings: Settings
    training: Examples
    validation: Examples | None
    checkpoint: Checkpoint | None = None
    progress: Progress = field(default_factory=Progress)
    history: History = field(default_factory=History)

    def run(self) -> History:
        """Fit; the modules hold the result."""
        start = time.monotonic()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            if not self.parameters:
                self._fit_head()
            else:
                self._fit_adapter()
        self.history.seconds += time.monotonic() - start
        self.head.module.eval()
        return self.history

    # -- the head alone

    def _fit_head(self) -> None:
        vectors = self.features.fixed(self.training.encoded)
        wanted = self._wanted(self.training)
        if isinstance(self.head, Head) and self.head.linear:
            fit_linear(self.head, vectors, wanted, DECAY_OF_FIXED)
            self._note_fixed(vectors, wanted)
            return
        places = self.features.places(self.training.encoded)
        held = self.features.fixed(self.validation.encoded) if self.validation else None
        self._epochs(lambda batch: vectors[torch.cat([places[n] for n in batch])], held)

    def _note_fixed(self, vectors: Tensor, wanted: Tensor) -> None:
        with torch.inference_mode():
            self.history.training.append(float(self.head.loss(self.head.scores(vectors), wanted)))
        if self.validation:
            self.history.validation.append(self._validation_loss(self.features.fixed(self.validation.encoded)))
            self.history.best_epoch = 1

    # -- adapter and head together

    def _fit_adapter(self) -> None:
        if self.warm and isinstance(self.head, Head) and self.head.linear and not self._resuming():
            # An adapter that adds nothing at first has a direction to follow from the first step on.
            vectors = self.features.fixed(self.training.encoded)
            fit_linear(self.head, vectors, self._wanted(self.training), DECAY_OF_FIXED)
            if self.validation:
                self.history.head_only = self._validation_loss(self.features.fixed(self.validation.encoded))
        self._epochs(lambda batch: self.features.vectors([self.training.encoded[n] for n in batch]), None)

    def _resuming(self) -> bool:
        return self.checkpoint is not None and self.checkpoint.exists()

    # -- epochs of steps

    def _epochs(self, vectors_of: Any, held: Tensor | None) -> None:
        named = dict(self.parameters)
        if self.train_head:
            named |= {f"head.{name}": each for name, each in self.head.module.named_parameters()}
        optimizer = torch.optim.AdamW(named.values(), lr=self.rate, weight_decay=self.settings.weight_decay)
        batches = -(-len(self.training) // self.settings.batch_size)
        updates = self.settings.epochs * -(-batches // self.settings.accumulation)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: _rate(n, updates, self.settings.warmup))
        state = State(named, self.head.module, optimizer, schedule, self.history)
        if self.validation:
            state.keep_best(0, self._validation_loss(held))
        if self.checkpoint:
            self.checkpoint.take_up(state)
        with self.progress.over(self.settings.epochs * batches, state.epoch * batches + state.batch):
            while state.epoch < self.settings.epochs and not self.history.stopped_early:
                self._epoch(state, vectors_of, batches)
                self._end_epoch(state, held)
        if self.validation:
            state.restore_best()
        if self.checkpoint:
            self.checkpoint.remove()

    def _epoch(self, state: State, vectors_of: Any, batches: int) -> None:
        self.head.module.train()
        order = list(_batches(self.training, self.settings, state.epoch))
        for number in range(state.batch, batches):
            batch = order[number]
            with self.features.precision(self.settings.precision):
                scores = self.head.scores(vectors_of(batch))
                loss = self.head.loss(scores.float(), self._wanted(self.training.pick(batch)))
            if not math.isfinite(float(loss.detach())):
                raise TaskProblem(
                    f"the loss is {float(loss.detach())} in epoch {state.epoch + 1}, step {number + 1}. Lower "
                    f"learning_rate (it is {self.rate:g}), or look for odd rows"
                )
            (loss / self.settings.accumulation).backward()  # type: ignore[no-untyped-call]
            self.history.steps.append(float(loss.detach()))
            if (number + 1) % self.settings.accumulation == 0 or number + 1 == batches:
                state.update()
            state.batch = number + 1
            self.progress.step(self.history.steps[-1], state.epoch)
            if (
                self.checkpoint
                and state.batch % CHECKPOINT_STEPS == 0
                and state.batch % self.settings.accumulation == 0
            ):
                self.checkpoint.write(state)

    def _end_epoch(self, state: State, held: Tensor | None) -> None:
        self.head.module.eval()
        own = self.history.steps[-state.batch :]
        self.history.training.append(sum(own) / len(own))
        state.epoch, state.batch = state.epoch + 1, 0
        if self.validation:
            loss = self._validation_loss(held)
            self.history.validation.append(loss)
            if loss < state.best_loss:
                state.keep_best(state.epoch, loss)
            elif state.epoch - self.history.best_epoch >= self.settings.patience:
                self.history.stopped_early = True
        if self.checkpoint:
            self.checkpoint.write(state)

    def _validation_loss(self, vectors: Tensor | None) -> float:
        assert self.validation
        self.head.module.eval()
        with torch.inference_mode():
            if vectors is None:
                vectors = self.features.every(self.validation.encoded)
            return float(self.head.loss(self.head.scores(vectors), self._wanted(self.validation)))

    def _wanted(self, examples: Examples) -> Tensor:
        return self.head.wanted(examples.targets).to(self.features.device)


def _batches(examples: Examples, settings: Settings, epoch: int) -> Iterator[list[int]]:
    """Places of shuffled batches whose texts are of about one length."""
    generator = random.Random(f"{settings.seed} {epoch}")
    order = list(range(len(examples)))
    generator.shuffle(order)
    found = []
    for start in range(0, len(order), settings.batch_size * POOL_BATCHES):
        pool = sorted(
            order[start : start + settings.batch_size * POOL_BATCHES], key=lambda n: examples.encoded[n].tokens
        )
        found += [pool[at : at + settings.batch_size] for at in range(0, len(pool), settings.batch_size)]
    generator.shuffle(found)
    yield from found


def _rate(update: int, updates: int, warmup: float) -> float:
    """Linear warm-up, then linear decay to nothing."""
    warm = max(1, int(updates * warmup))
    return (update + 1) / warm if update < warm else max(0.0, (updates - update) / max(1, updates - warm))


def split(count: int, part: float, groups: Sequence[Any], seed: int) -> tuple[list[int], list[int]]:
    """Places of the training and of the validation rows, `part` of each group (label) held out."""
    if not 0 < part < 1:
        raise TaskProblem(f"validation is {part}; it is a part of the rows between 0 and 1, or rows of their own")
    generator = random.Random(seed)
    by_group: dict[Any, list[int]] = {}
    for place in range(count):
        by_group.setdefault(groups[place], []).append(place)
    held: list[int] = []
    for places in by_group.values():
        generator.shuffle(places)
        held += places[: round(len(places) * part)]
    if not held:
        held = [generator.randrange(count)]
    rest = sorted(set(range(count)) - set(held))
    if not rest:
        raise TaskProblem(f"{count} rows are too few to hold some out. Give more, or validation=None")
    return rest, sorted(held)
