"""A fine-tuned model, as transformers saves it: the backbone in it, and the head on top."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fmplex.task.backbone import Backbone
from fmplex_backend.errors import FmplexError, TaskProblem
from fmplex_backend.families.heads import CarriedOver
from fmplex_backend.families.model_files import model_config
from fmplex_backend.repository.backbone import family_of

COMPARED_IN = "float32"


def rounding_of(config: Mapping[str, Any]) -> float:
    """The distance from 1 to the next number in the format that a model's weights are stored in, by its config.json."""
    stored = str(config.get("dtype") or config.get("torch_dtype") or COMPARED_IN)
    return float(torch.finfo(getattr(torch, stored)).eps)


class Checkpoint:
    """A model's directory; raises TaskProblem where it is none that could become a task."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        if not directory.is_dir():
            raise TaskProblem(f"there is no directory {directory}. Name one that save_pretrained wrote")
        if (directory / "adapter_config.json").is_file():
            raise TaskProblem(
                f"{directory} holds a PEFT adapter, no model of its own. Add it to its backbone: fmplex task add NAME "
                f"--adapter {directory} --backbone BACKBONE"
            )
        self.files = sorted(directory.glob("*.safetensors"))
        if not self.files:
            raise TaskProblem(
                f"{directory} has no weights as safetensors. Save it again with transformers' save_pretrained, which "
                "writes them"
            )
        try:
            self.config: Mapping[str, Any] = model_config(directory, directory)
        except FmplexError as error:
            raise TaskProblem(str(error)) from None
        self.family = family_of(str(directory), self.config)

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.directory)!r})"

    @property
    def name(self) -> str:
        """The directory's, as a task could be called."""
        return re.sub(r"[^\w.-]+", "-", self.directory.name).strip("-.")

    @property
    def rounding(self) -> float:
        """See `rounding_of`."""
        return rounding_of(self.config)

    @cached_property
    def backbone(self) -> Backbone:
        """The model without its head, in float32, loaded as a server does it."""
        return Backbone(self.directory, family=self.family, dtype=COMPARED_IN)

    def release(self) -> None:
        """Drop the loaded model."""
        self.__dict__.pop("backbone", None)

    def head(self) -> CarriedOver:
        """Its head as a decoder; raises TaskProblem where none here computes the same."""
        runtime = self.backbone.runtime
        own = runtime.model.state_dict()
        prefix = f"{runtime.model.base_model_prefix}."
        unread = tuple(f"{name}." for name in runtime.unread)
        tensors = {name: each for name, each in own.items() if name.startswith(unread)}
        with self._opened() as stored:
            tensors |= {
                name: file.get_tensor(name)
                for name, file in stored.items()
                if not name.startswith(prefix) and name not in own
            }
        try:
            return self.backbone.family.carried_over(self.config, tensors)
        except ValueError as error:
            raise TaskProblem(f"{self.directory}: {error}") from None

    def sampled(self, names: list[str]) -> dict[str, Tensor]:
        """Some of its tensors, in float64."""
        with self._opened() as stored:
            return {name: stored[name].get_tensor(name).double() for name in names}

    def matrices(self) -> dict[str, tuple[int, ...]]:
        """The shapes of its tensors of two dims, by name."""
        with self._opened() as stored:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name, file in stored.items()}
        return {name: shape for name, shape in shapes.items() if len(shape) == 2}

    def _opened(self) -> _Stored:
        return _Stored(self.files)


class _Stored(ExitStack):
    """The open files of a model, by the names of their tensors."""

    def __init__(self, files: list[Path]) -> None:
        super().__init__()
        self.files = files
        self.by_name: dict[str, Any] = {}

    def __enter__(self) -> _Stored:
        super().__enter__()
        for path in self.files:
            try:
                file = self.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise TaskProblem(f"{path} is not readable as safetensors: {error}. Copy it again") from None
            self.by_name |= dict.fromkeys(file.keys(), file)
        return self

    def items(self) -> Iterator[tuple[str, Any]]:
        """(a tensor's name, its file)."""
        yield from self.by_name.items()

    def __getitem__(self, name: str) -> Any:
        return self.by_name[name]
