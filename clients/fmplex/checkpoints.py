"""A fitting's state on disk, so that one that is killed goes on where it was: tensors as safetensors, the rest JSON."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fmplex.errors import TaskProblem

if TYPE_CHECKING:
    from fmplex.state import State

TENSORS, NUMBERS = "state.safetensors", "state.json"


class Checkpoint:
    """A directory; `digest` stands for the data and the settings, which must be the same when it is taken up."""

    def __init__(self, directory: Path, digest: str) -> None:
        self.directory, self.digest = directory, digest

    def exists(self) -> bool:
        """Whether there is something to go on from."""
        return (self.directory / NUMBERS).is_file()

    def write(self, state: State) -> None:
        """Beside, then renamed over: a kill leaves the former one."""
        aside = self.directory.with_name(f".{self.directory.name}.{os.getpid()}")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file(state.tensors(), aside / TENSORS)
        (aside / NUMBERS).write_text(json.dumps(state.numbers() | {"digest": self.digest}), encoding="utf-8")
        former = self.directory.with_name(f".{self.directory.name}.former")
        shutil.rmtree(former, ignore_errors=True)
        if self.directory.exists():
            self.directory.rename(former)
        aside.rename(self.directory)
        shutil.rmtree(former, ignore_errors=True)

    def take_up(self, state: State) -> None:
        """Fill the state from what is there; raises TaskProblem where that is of something else."""
        former = self.directory.with_name(f".{self.directory.name}.former")
        if not self.directory.exists() and former.exists():  # killed between two renames
            former.rename(self.directory)
        if not self.exists():
            return
        try:
            numbers = json.loads((self.directory / NUMBERS).read_text(encoding="utf-8"))
            tensors = load_file(self.directory / TENSORS)
        except (OSError, ValueError, SafetensorError) as error:
            raise TaskProblem(f"the checkpoint {self.directory} cannot be read: {error}. Delete it") from None
        if numbers["digest"] != self.digest:
            raise TaskProblem(
                f"the checkpoint {self.directory} is of other data, settings or another task. Delete it, or name "
                "another folder"
            )
        state.fill(tensors, numbers)

    def remove(self) -> None:
        """The fitting is over."""
        shutil.rmtree(self.directory, ignore_errors=True)
