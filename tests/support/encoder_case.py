"""What entries in the contract test have in common: a backbone saved into a directory, tasks made of recipes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt
import torch
from family_cases import BACKBONE, Broken, FamilyCase

from testing import breaking, repositories
from testing.adapters import lora
from testing.repositories import Task as Recipe

Spoil = Callable[[Path], None]

BROKEN_NAMES = (
    "no-task-json",
    "task-json-cut",
    "unknown-decoder",
    "unknown-field",
    "foreign",
    "head-nan",
    "head-cut",
    "adapter-cut",
)
CASES = [case for case in breaking.CASES if case.name in BROKEN_NAMES]


def to_break(recipe: Callable[..., Recipe], modules: Sequence[str]) -> dict[str, Recipe]:
    """A recipe for each of `CASES`, with a LoRA on the modules where it wants an adapter."""
    return {
        case.name: recipe(f"to-break-{case.name}", 0, adapter=None if case.adapter is None else lora(8, *modules))
        for case in CASES
    }


def broken_cases(recipes: Mapping[str, Recipe]) -> dict[str, Broken]:
    """Of what `to_break` returns."""
    return {case.name: Broken(recipes[case.name].name, case.spoil, case.says) for case in CASES}


def adapter_elsewhere(rank: int, hidden: int) -> tuple[Spoil, tuple[str, ...]]:
    """An adapter has weights for a module that the backbone does not have: how to spoil one, and what is said."""
    return (
        breaking.edit_tensor(
            "adapter/adapter_model.safetensors",
            lambda tensors: tensors.update({"base_model.model.tail.lora_A.weight": torch.zeros(rank, hidden)}),
        ),
        ("adapter_model.safetensors", "no module 'tail'", "another backbone"),
    )


class EncoderCase(FamilyCase):
    """Writes them."""

    recipes: ClassVar[Mapping[str, Recipe]]

    @property
    @abstractmethod
    def saved(self) -> Sequence[Any]:
        """What is saved into the backbone's directory: the model, and what reads its inputs."""

    def write_backbone(self, repository: Path, name: str, max_batch_size: int) -> None:
        self.path = repository.parent / "model"
        for each in self.saved:
            each.save_pretrained(self.path)
        repositories.write_backbone(
            repository, name, model=str(self.path), family=self.family, max_batch_size=max_batch_size, threads="1"
        )

    def write_task(self, repository: Path, name: str, tag: int, variant: str) -> Path:
        return repositories.write_task(repository, self._recipe(variant, name=name, vfm=tag, backbone=BACKBONE))

    def write_version(self, version: Path, name: str, variant: str) -> Path:
        return repositories.write_version(version, self._recipe(variant, name=name))

    def states(self, reference: Any, item: Any) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = reference.pooled(item).numpy()
        return found

    def _recipe(self, variant: str, **changes: Any) -> Recipe:
        return replace(self.recipes[variant], model=self.path, **changes)
