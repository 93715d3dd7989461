"""Checkpoints, from which an interrupted fitting resumes: tensors as safetensors, the rest as JSON."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fmplex_backend.errors import TaskProblem

if TYPE_CHECKING:
    from fmplex.training.state import State

TENSORS, NUMBERS = "state.safetensors", "state.json"


class Checkpoint:
    """A checkpoint's directory; `digest` identifies data and options, which must be the same to resume from it."""

    def __init__(self, directory: Path, digest: str) -> None:
        self.directory, self.digest = directory, digest

    def exists(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return (self.directory / NUMBERS).is_file()

    def write(self, state: State) -> None:
        """Write into a directory beside the checkpoint and rename it, so that a kill leaves the former checkpoint."""
        staging = self.directory.with_name(f".{self.directory.name}.{os.getpid()}")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        save_file(state.tensors(), staging / TENSORS)
        (staging / NUMBERS).write_text(json.dumps(state.numbers() | {"digest": self.digest}), encoding="utf-8")
        former = self.directory.with_name(f".{self.directory.name}.former")
        shutil.rmtree(former, ignore_errors=True)
        if self.directory.exists():
            self.directory.rename(former)
        staging.rename(self.directory)
        shutil.rmtree(former, ignore_errors=True)

    def restore(self, state: State) -> None:
        """Restore the state, if there is a checkpoint; raises TaskProblem if it is unreadable or has another digest."""
        former = self.directory.with_name(f".{self.directory.name}.former")
        if not self.directory.exists() and former.exists():  # `write` was killed between its renames
            former.rename(self.directory)
        if self.exists():
            numbers = self._numbers()
            try:
                tensors = load_file(self.directory / TENSORS)
            except (OSError, SafetensorError) as error:
                raise self._unreadable(error) from None
            state.fill(tensors, numbers)

    def check(self) -> None:
        """Raise TaskProblem where the directory cannot be written, or holds something that is not to be resumed."""
        if self.exists():
            self._numbers()
        elif self.directory.exists() and (not self.directory.is_dir() or any(self.directory.iterdir())):
            raise TaskProblem(f"{self.directory} is not a checkpoint, and not empty. Name a directory of its own")
        parent = next(each for each in self.directory.absolute().parents if each.exists())
        if not os.access(parent, os.W_OK):
            raise TaskProblem(f"checkpoints cannot be written to {self.directory}. Name a directory that is writable")

    def _numbers(self) -> dict[str, Any]:
        try:
            numbers: dict[str, Any] = json.loads((self.directory / NUMBERS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        if numbers["digest"] != self.digest:
            raise TaskProblem(
                f"the checkpoint {self.directory} is of other data, options or another task. Delete it, or name "
                "another directory"
            )
        return numbers

    def _unreadable(self, error: Exception) -> TaskProblem:
        return TaskProblem(f"the checkpoint {self.directory} cannot be read: {error}. Delete it")

    def remove(self) -> None:
        """Delete it: the fitting is complete."""
        shutil.rmtree(self.directory, ignore_errors=True)
