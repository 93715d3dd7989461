"""The state of a fitting: weights, the optimizer's moments, the best weights so far, and the history of losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

MAX_GRADIENT_NORM = 1.0


@dataclass(slots=True)
class History:
    """Losses of steps and of epochs, and that of the head alone before the adapter is fitted."""

    steps: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)  # the mean of each epoch's steps
    validation: list[float] = field(default_factory=list)  # after an epoch; empty without validation rows
    figures: list[float] = field(default_factory=list)  # the same rows' `figure`, of kinds that have one
    figure: str = ""  # its name, e.g. accuracy
    head_only: float | None = None  # validation loss of the head on the bare backbone
    head_only_figure: float | None = None
    untrained_figure: float | None = None  # the same, before the first step of a fitting without a head
    best_epoch: int = 0  # the one whose weights were kept; 0: those from before the first
    stopped_early: bool = False
    seconds: float = 0.0

    def notes(self) -> dict[str, float | int | str]:
        """For the metrics of task.json."""
        found: dict[str, float | int | str] = {"epochs": len(self.training), "train_seconds": round(self.seconds, 1)}
        if self.validation:
            found["validation_loss"] = round(min(self.validation), 4)
            found["best_epoch"] = self.best_epoch
        best = self.best_figure
        if best is not None:
            found[f"validation_{self.figure}"] = round(best, 4)
        if self.head_only_figure is not None:
            found[f"head_only_validation_{self.figure}"] = round(self.head_only_figure, 4)
        if self.untrained_figure is not None:
            found[f"untrained_validation_{self.figure}"] = round(self.untrained_figure, 4)
        return found

    def note_validation(self, loss: float, figure: tuple[str, float] | None) -> None:
        """Of an epoch that has ended."""
        self.validation.append(loss)
        if figure is not None:
            self.figure, value = figure
            self.figures.append(value)

    @property
    def best_figure(self) -> float | None:
        """That of the weights that were kept; None where the kind has none, or without validation rows."""
        if self.best_epoch == 0:
            return self.untrained_figure if self.head_only_figure is None else self.head_only_figure
        return self.figures[self.best_epoch - 1] if len(self.figures) >= self.best_epoch else None


class State:
    """All that changes while epochs run, which is what a checkpoint holds."""

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        history: History,
    ) -> None:
        self.named, self.optimizer, self.schedule = dict(named), optimizer, schedule
        self.history = history
        self.epoch = 0  # epochs that are complete
        self.batch = 0  # batches of the current epoch that are complete
        self.best: dict[str, Tensor] = {}
        self.alone: dict[str, Tensor] = {}  # the head as it was fitted on the bare backbone
        self.best_loss = math.inf

    def update(self) -> None:
        """One step of the optimizer."""
        nn.utils.clip_grad_norm_(self.named.values(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()

    def keep_best(self, epoch: int, loss: float) -> None:
        """Copy the current weights: they are the best so far."""
        self.best = {name: each.detach().clone() for name, each in self.named.items()}
        self.best_loss, self.history.best_epoch = loss, epoch

    def restore_best(self) -> None:
        """Set the weights to the best ones."""
        with torch.no_grad():
            for name, tensor in self.best.items():
                self.named[name].copy_(tensor)

    def tensors(self) -> dict[str, Tensor]:
        """Copies of weights, the optimizer's moments, the best weights and the random generator's state."""
        found = {f"now.{name}": each.detach() for name, each in self.named.items()}
        found |= {f"best.{name}": each for name, each in self.best.items()}
        found |= {f"alone.{name}": each for name, each in self.alone.items()}
        for name, each in self.named.items():
            moments = self.optimizer.state.get(each, {})
            found |= {f"moment.{key}.{name}": torch.as_tensor(value) for key, value in moments.items()}
        found["random"] = torch.get_rng_state()
        return {name: each.detach().cpu().contiguous().clone() for name, each in found.items()}

    def numbers(self) -> dict[str, Any]:
        """Everything but tensors, for JSON."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "updates": self.schedule.last_epoch,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "history": asdict(self.history),
        }

    def fill(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Restore what `tensors` and `numbers` gave."""
        with torch.no_grad():
            for name, each in self.named.items():
                each.copy_(tensors[f"now.{name}"])
                marks = {key.split(".")[1] for key in tensors if key.startswith("moment.") and key.endswith(f".{name}")}
                for mark in marks:
                    tensor = tensors[f"moment.{mark}.{name}"]
                    self.optimizer.state[each][mark] = tensor if mark == "step" else tensor.to(each.device)
        self.best = {key.removeprefix("best."): tensor for key, tensor in tensors.items() if key.startswith("best.")}
        self.alone = {key.removeprefix("alone."): tensor for key, tensor in tensors.items() if key.startswith("alone.")}
        torch.set_rng_state(tensors["random"])
        self.epoch, self.batch = numbers["epoch"], numbers["batch"]
        self.best_loss = math.inf if numbers["best_loss"] is None else numbers["best_loss"]
        for name, value in numbers["history"].items():
            setattr(self.history, name, value)
        self.schedule.last_epoch = numbers["updates"]
        factors = [of(numbers["updates"]) for of in self.schedule.lr_lambdas]
        for group, factor in zip(self.optimizer.param_groups, factors, strict=True):
            group["lr"] = factor * group["initial_lr"]
