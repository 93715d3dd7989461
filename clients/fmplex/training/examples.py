"""Rows ready for the backbone: split, put into batches, and passed through it in portions."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fmplex.training.options import FitOptions
from fmplex.training.progress import Progress
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.spec import Example

POOL_BATCHES = 40  # rows are sorted by length in pools of so many batches, which leaves little padding in a batch
PORTION = 512  # rows between two reports, where many are only passed through the backbone


@dataclass(slots=True)
class Examples:
    """Rows ready for the backbone, and their targets."""

    inputs: list[Example]
    targets: list[Any]

    def __len__(self) -> int:
        return len(self.targets)

    def pick(self, places: Sequence[int]) -> Examples:
        """The examples at these indices."""
        return Examples([self.inputs[place] for place in places], [self.targets[place] for place in places])


def in_portions(vectors: Callable[[list[Example]], Tensor], examples: Examples, progress: Progress) -> Tensor:
    """The vectors of any number of rows, reported as they are computed."""
    parts = []
    for start in range(0, len(examples), PORTION):
        portion = examples.inputs[start : start + PORTION]
        parts.append(vectors(portion))
        progress.advance(len(portion))
    return torch.cat(parts)


def batches(examples: Examples, options: FitOptions, epoch: int) -> list[list[int]]:
    """Batches of row indices, shuffled, each of rows of about one length."""
    generator = random.Random(f"{options.seed} {epoch}")
    order = list(range(len(examples)))
    generator.shuffle(order)
    found = []
    for start in range(0, len(order), options.batch_size * POOL_BATCHES):
        pool = sorted(order[start : start + options.batch_size * POOL_BATCHES], key=lambda n: examples.inputs[n].length)
        found += [pool[at : at + options.batch_size] for at in range(0, len(pool), options.batch_size)]
    generator.shuffle(found)
    return found


def split(count: int, part: float, groups: Sequence[Any], seed: int) -> tuple[list[int], list[int]]:
    """Indices of the training and of the validation rows; a fraction `part` of each group (label) is held out."""
    if not 0 < part < 1:
        raise TaskProblem(f"validation is {part}. Give a fraction of the rows between 0 and 1, or rows of their own")
    generator = random.Random(seed)
    by_group: dict[Any, list[int]] = {}
    for place in range(count):
        by_group.setdefault(groups[place], []).append(place)
    held: list[int] = []
    for places in by_group.values():
        generator.shuffle(places)
        held += places[: min(round(len(places) * part), len(places) - 1)]  # each has at least one to train on
    if not held:
        held = [generator.randrange(count)]
    rest = sorted(set(range(count)) - set(held))
    if not rest:
        raise TaskProblem(f"{count} rows are too few to hold some out. Give more, or validation=None")
    return rest, sorted(held)
