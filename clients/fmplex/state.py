"""What changes while a task is fitted: weights, moments, the best so far, and what happened."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

CLIP = 1.0  # of the gradients' norm


@dataclass(slots=True)
class History:
    """What happened: losses of steps, of epochs, and of the head alone before the adapter came."""

    steps: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)  # mean of an epoch
    validation: list[float] = field(default_factory=list)  # after an epoch; empty without validation rows
    head_only: float | None = None  # validation loss of the head on the bare backbone
    best_epoch: int = 0  # whose weights were kept; 0: those before the first
    stopped_early: bool = False
    seconds: float = 0.0

    def notes(self) -> dict[str, float | int | str]:
        """For the metrics of task.json."""
        found: dict[str, float | int | str] = {"epochs": len(self.training), "train_seconds": round(self.seconds, 1)}
        if self.validation:
            found["validation_loss"] = round(min(self.validation), 4)
            found["best_epoch"] = self.best_epoch
        return found


class State:
    """All that changes while epochs run: what a checkpoint has to hold."""

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        head: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        history: History,
    ) -> None:
        self.named, self.head, self.optimizer, self.schedule = dict(named), head, optimizer, schedule
        self.history = history
        self.epoch = 0  # that are over
        self.batch = 0  # of the epoch at hand, that are over
        self.best: dict[str, Tensor] = {}
        self.best_loss = math.inf

    def update(self) -> None:
        """One step of the optimizer."""
        nn.utils.clip_grad_norm_(self.named.values(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()

    def keep_best(self, epoch: int, loss: float) -> None:
        """These weights are the best so far."""
        self.best = {name: each.detach().clone() for name, each in self.named.items()}
        self.best_loss, self.history.best_epoch = loss, epoch

    def restore_best(self) -> None:
        """Take them."""
        with torch.no_grad():
            for name, tensor in self.best.items():
                self.named[name].copy_(tensor)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, the optimizer's moments, the best weights, the random numbers' state."""
        found = {f"now.{name}": each.detach() for name, each in self.named.items()}
        found |= {f"best.{name}": each for name, each in self.best.items()}
        for (name, each), _ in zip(self.named.items(), range(len(self.named)), strict=True):
            moments = self.optimizer.state.get(each, {})
            found |= {f"moment.{key}.{name}": torch.as_tensor(value) for key, value in moments.items()}
        found["random"] = torch.get_rng_state()
        return {name: each.detach().cpu().contiguous().clone() for name, each in found.items()}

    def numbers(self) -> dict[str, Any]:
        """Everything that is no tensor."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "updates": self.schedule.last_epoch,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "history": asdict(self.history),
        }

    def fill(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Back to where a checkpoint was written."""
        with torch.no_grad():
            for name, each in self.named.items():
                each.copy_(tensors[f"now.{name}"])
                marks = {key.split(".")[1] for key in tensors if key.startswith("moment.") and key.endswith(f".{name}")}
                for mark in marks:
                    tensor = tensors[f"moment.{mark}.{name}"]
                    self.optimizer.state[each][mark] = tensor if mark == "step" else tensor.to(each.device)
        self.best = {key.removeprefix("best."): tensor for key, tensor in tensors.items() if key.startswith("best.")}
        torch.set_rng_state(tensors["random"])
        self.epoch, self.batch = numbers["epoch"], numbers["batch"]
        self.best_loss = math.inf if numbers["best_loss"] is None else numbers["best_loss"]
        for name, value in numbers["history"].items():
            setattr(self.history, name, value)
        self.schedule.last_epoch = numbers["updates"]
        factors = [of(numbers["updates"]) for of in self.schedule.lr_lambdas]
        for group, factor in zip(self.optimizer.param_groups, factors, strict=True):
            group["lr"] = factor * group["initial_lr"]
