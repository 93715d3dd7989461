"""A model repository as people and the Task-API read it: its backbones, and every task, also one that is broken."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fmplex_backend.errors import TaskProblem, TaskRefused
from fmplex_backend.repository.check import tag_refused
from fmplex_backend.repository.config import load_backbone_config
from fmplex_backend.repository.configs import (
    CONFIG,
    backbone_parameters,
    backbone_stepped_into,
    is_backbone,
    read_config,
)
from fmplex_backend.repository.groups import GroupSpec, is_group
from fmplex_backend.repository.tasks import BrokenTask, Entry, ReadTask, Repository, TaskSpec, is_hidden
from fmplex_backend.repository.versions import is_directory, version_numbers


class RepositoryReader:
    """A directory of Triton models."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def backbones(self) -> list[str]:
        """Names of the backbones in it; a directory whose config.pbtxt cannot be read is none."""
        return [name for name in self.names() if is_backbone(self.root, name)]

    def tasks(self) -> dict[str, tuple[str, ReadTask]]:
        """Every task by name, with its backbone's name; one is broken where the repository has no such backbone."""
        return {
            name: (backbone, entry)
            for name, (backbone, entry) in self.entries().items()
            if not isinstance(entry, GroupSpec) and not self._is_group(entry)
        }

    def groups(self) -> dict[str, tuple[str, GroupSpec | BrokenTask]]:
        """Every group by name, with its backbone's name; what is said of tasks holds for them, too."""
        return {
            name: (backbone, entry)
            for name, (backbone, entry) in self.entries().items()
            if isinstance(entry, GroupSpec) or (isinstance(entry, BrokenTask) and self._is_group(entry))
        }

    def _is_group(self, entry: ReadTask) -> bool:
        if isinstance(entry, TaskSpec):
            return False
        try:
            return is_group(read_config(self.root / entry.name / CONFIG))
        except TaskProblem:  # it may be either
            return False

    def entries(self) -> dict[str, tuple[str, Entry]]:
        """Every task and group by name, with its backbone's name."""
        backbones = self.backbones()
        found: dict[str, tuple[str, Entry]] = {
            name: (backbone, entry)
            for backbone in backbones
            for name, entry in Repository(self.root, backbone).read().items()
        }
        left = (name for name in self.names() if name not in found and name not in backbones)
        return found | {name: orphan for name in left if (orphan := self._orphan(name, backbones)) is not None}

    def unreadable(self) -> dict[str, str]:
        """Directories that may be tasks, but whose config.pbtxt cannot be read, and why."""
        tasks, found = self.entries(), {}
        for name in self.names():
            try:
                read_config(self.root / name / CONFIG)
            except TaskProblem as error:
                found[name] = str(error)
        return {name: problem for name, problem in found.items() if name not in tasks}

    def entry_in(self, directory: Path) -> tuple[str, Entry]:
        """A task's or group's entry in any directory, as a backbone of this repository would read it.

        It is broken, too, where another task here keeps its tag, as a server that serves neither of them yet decides
        (see `keeper_of`); a task of its own name is what it would replace. Raises TaskProblem.
        """
        directory = directory.resolve()
        if not directory.is_dir():
            raise TaskProblem(f"there is no directory {directory}. Name that of a task")
        backbone = backbone_stepped_into(read_config(directory / CONFIG))
        if not backbone:
            raise TaskProblem(
                f"{directory} is no task: {CONFIG} with an ensemble step that asks a backbone for a tag, VFM_<n>, is "
                "missing. Name the directory of a task, or that of a version with --backbone"
            )
        if backbone not in self.backbones():
            error = self._no_backbone(directory / CONFIG, backbone)
            return backbone, BrokenTask(directory.name, None, error)
        entry = Repository(directory.parent, backbone).read_task(directory.name)
        assert entry is not None, "it steps into the backbone"
        if isinstance(entry, BrokenTask):
            return backbone, entry
        repository = Repository(self.root, backbone)
        others = [name for name, other in repository.read().items() if other.vfm == entry.vfm and name != entry.name]
        if directory.parent == self.root.resolve():
            keeper = repository.oldest([*others, entry.name])
            others = [keeper] if keeper != entry.name else []
        slots = self.slots(backbone)
        refused = tag_refused(entry.config, entry.vfm, others, slots=slots, backbone=backbone)
        return backbone, entry if refused is None else BrokenTask(entry.name, entry.vfm, refused)

    def task(self, name: str) -> tuple[str, TaskSpec]:
        """A task that can be read; raises TaskProblem or TaskRefused."""
        found = self.tasks()
        if name not in found:
            known = ", ".join(sorted(found)) or "(none)"
            raise TaskProblem(f"there is no task {name!r} in {self.root}, which has {known}. Name one of them")
        backbone, entry = found[name]
        if isinstance(entry, BrokenTask):
            raise entry.error
        return backbone, entry

    def versions(self, name: str) -> list[int]:
        """Numbers of its version directories."""
        return version_numbers(self.root / name)

    def names(self) -> list[str]:
        """Every directory that could be a model; raises TaskProblem where there is no repository."""
        if not self.root.is_dir():
            raise TaskProblem(f"there is no model repository {self.root}. Name a directory of Triton models")
        return sorted(each.name for each in self.root.iterdir() if not is_hidden(each.name) and is_directory(each))

    def slots(self, backbone: str) -> int:
        """How many tags a backbone has; raises BackboneRefused."""
        parameters = backbone_parameters(self.root, backbone) or {}
        return load_backbone_config(self.root / backbone / CONFIG, parameters).vfm_slots

    def _orphan(self, name: str, backbones: Collection[str]) -> tuple[str, BrokenTask] | None:
        """A task whose backbone is none of these; None where the directory is no task."""
        try:
            backbone = backbone_stepped_into(read_config(self.root / name / CONFIG))
        except TaskProblem:  # perhaps another model's: the server says what is wrong with it
            return None
        if not backbone or backbone in backbones:
            return None
        entry = Repository(self.root, backbone).read_task(name)
        tag = None if entry is None else entry.vfm
        return backbone, BrokenTask(name, tag, self._no_backbone(self.root / name / CONFIG, backbone))

    def _no_backbone(self, file: Path, backbone: str) -> TaskRefused:
        known = ", ".join(self.backbones()) or "none"
        return TaskRefused(
            file,
            "ensemble_scheduling.step.model_name",
            f"there is no backbone {backbone!r} in {self.root}, which has {known}",
            f"Add it with `fmplex backbone add {backbone} MODEL`, or name another repository with --repository",
        )
