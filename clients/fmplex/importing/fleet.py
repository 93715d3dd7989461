"""Several fine-tuned checkpoints of one model: which of them the others share, and a task of each."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmplex.importing.checkpoint import Checkpoint, rounding_of
from fmplex.importing.difference import rank
from fmplex.importing.extension import Comparison, Extension
from fmplex.task.backbone import Backbone
from fmplex.task.task import Task
from fmplex_backend.adapters.kinds import Pretrained
from fmplex_backend.errors import FmplexError, TaskProblem
from fmplex_backend.families.heads import CarriedOver
from fmplex_backend.families.model_files import find_model, model_config

COMPARED = 3  # matrices, to choose what is shared
SHORT, LONG = (16, 6), (64, 2)  # tokens and count of the inputs that answers are compared on


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint as a task."""

    name: str
    checkpoint: Checkpoint
    task: Task | None = None  # None where it cannot be one
    carried: CarriedOver | None = None
    extension: Extension = field(default_factory=Extension)
    error: float = 0.0  # the largest difference between its answers and the checkpoint's own
    reason: str = ""  # why it cannot

    @property
    def bytes(self) -> int:
        """Of its own weights, head included."""
        head = self.carried.tensors.values() if self.carried else ()
        return self.extension.bytes + sum(4 * each.numel() for each in head)


def check_alike(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise TaskProblem where they are not of one family and one architecture."""
    first, *others = checkpoints
    for other in others:
        for what, one, two in (
            ("family", first.family, other.family),
            ("model_type", first.config.get("model_type"), other.config.get("model_type")),
        ):
            if one != two:
                raise TaskProblem(
                    f"{first.directory} has the {what} {one}, {other.directory} {two}: they share nothing. Import "
                    "those of one model together"
                )


def chosen_base(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """The one from which the others differ least, by a few matrices: the first of several."""
    if len(checkpoints) == 1:
        return checkpoints[0]
    costs = dict.fromkeys(checkpoints, 0)
    for name in _differing(checkpoints):
        tensors = {each: each.sampled([name])[name] for each in checkpoints}
        for one, other in combinations(checkpoints, 2):
            own, base = tensors[one], tensors[other]
            cost = 0 if torch.equal(own, base) else rank(own, base, max(one.rounding, other.rounding)) * sum(own.shape)
            costs[one] += cost
            costs[other] += cost
    return min(checkpoints, key=costs.__getitem__)


def _differing(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """A few matrices that all have in one shape and that are not equal in all; the smallest, as they are compared."""
    first, *others = (each.matrices() for each in checkpoints)
    common = [name for name, shape in first.items() if all(other.get(name) == shape for other in others)]
    found: list[str] = []
    for name in sorted(common, key=lambda name: (first[name][0] * first[name][1], name)):
        tensors = [each.sampled([name])[name] for each in checkpoints]
        if any(not torch.equal(tensors[0], each) for each in tensors[1:]):
            found.append(name)
        if len(found) == COMPARED:
            break
    return found


class Importer:
    """Makes tasks of checkpoints, on one backbone.

    Args:
        backbone: what they share, in float32, with the name and the repository that the tasks get.
        most: the largest rank of LoRA. cuts: whether differences of a higher one are cut to it.
        tolerance: how far answers may differ from the checkpoint's own.
    """

    def __init__(self, backbone: Backbone, *, most: int | None = None, cuts: bool = False, tolerance: float) -> None:
        self.backbone, self.tolerance = backbone, tolerance
        directory = find_model(backbone.config.model, backbone.file)
        rounding = rounding_of(model_config(directory, backbone.file))
        self.compared = Comparison(backbone, rounding, most, cuts=cuts)

    @property
    def bytes(self) -> int:
        """Of the backbone, in float32."""
        return sum(4 * each.numel() for each in self.compared.state.values())

    def found(self, checkpoint: Checkpoint, name: str) -> Found:
        """A checkpoint as a task, compared with itself; its `reason` says it where it cannot be one."""
        found = Found(name, checkpoint)
        try:
            found = replace(found, carried=(carried := checkpoint.head()))
            extension = self.compared.extension(checkpoint.backbone, checkpoint.rounding)
            task = self._task(name, carried, extension)
            error = self._error(task, _task(name, checkpoint.backbone, carried))
        except FmplexError as problem:
            return replace(found, reason=str(problem).removeprefix(f"{checkpoint.directory}: "))
        finally:
            checkpoint.release()
        found = replace(found, extension=extension, error=error)
        if not error <= self.tolerance:
            return replace(
                found,
                reason=f"its answers would differ by {error:.1g}, more than --tolerance {self.tolerance:g}: "
                + ("raise --rank" if extension.left_out else "does it prepare its inputs in another way?"),
            )
        return replace(found, task=task)

    def _task(self, name: str, carried: CarriedOver, extension: Extension) -> Task:
        task = _task(name, self.backbone, carried)
        if extension:
            with tempfile.TemporaryDirectory() as folder:
                extension.adapter().write(Path(folder, "adapter"), "")
                task.attach("adapter", Pretrained(Path(folder, "adapter")))
        return task

    def _error(self, task: Task, reference: Task) -> float:
        """The largest difference between two tasks' numbers."""
        reads, size = task.encoder.reads(), task.encoder.size()
        items: list[Any] = []
        for length, count in (SHORT, LONG):
            items += self.backbone.family.samples(reads.tensor.name, length, count, seed=length)
        items = items or [reads.probe(size)]
        differences = [0.0]
        for own, other in zip(task.outputs(items), reference.outputs(items), strict=True):
            for name, value in own.items():
                if np.issubdtype(value.dtype, np.floating):
                    same = value.shape == other[name].shape
                    differences.append(float(np.abs(value - other[name]).max(initial=0.0)) if same else np.inf)
        return max(differences)


def _task(name: str, backbone: Backbone, carried: CarriedOver) -> Task:
    task = Task(name, backbone, encoder=carried.encoder, decoder=carried.decoder)
    task.fitted = replace(task.fitted, head=dict(carried.tensors))
    return task
