"""A plan is carried out: backbones are started, tasks rebound, and what is left empty is stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from fmplex_backend.errors import TaskProblem
from fmplex_backend.repository.configs import CONFIG, read_config
from fmplex_backend.repository.directory import UNLOADED
from fmplex_backend.repository.writer import ModelRepository
from fmplex_controller.planner.situation import Plan
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar.rebinding import rebind
from fmplex_controller.sidecar.triton import Triton


class Backbones(ModelRepository):
    """A repository in which backbones come after the model of others, and are put away."""

    def copy(self, name: str, template: str) -> None:
        """Write a backbone's directory after another one's entry; one of that name that was put away is taken again."""
        with self._locked():
            directory = self.root / name
            if (directory / UNLOADED).exists():
                (directory / UNLOADED).unlink()
                return
            self.check_free(name)
            proto: Any = read_config(self.root / template / CONFIG)
            proto.name = name
            with self._staging() as staging:
                (staging / name / "1").mkdir(parents=True)
                (staging / name / "1" / ".gitkeep").touch()
                (staging / name / CONFIG).write_text(text_format.MessageToString(proto), encoding="utf-8")
                (staging / name).rename(directory)

    def put_away(self, name: str) -> None:
        """Mark a backbone as not to be loaded; its directory stays. Raises TaskProblem where it has tasks."""
        with self._locked():
            bound = sorted(task for task, (backbone, _) in self.tasks().items() if backbone == name)
            if bound:
                raise TaskProblem(f"{name!r} is not stopped: {', '.join(bound)} are bound to it. Rebind them first")
            (self.root / name / UNLOADED).touch()


def carry_out(root: Path, triton: Triton, plan: Plan, templates: Mapping[str, str], journal: Journal) -> Iterator[str]:
    """Carry a plan out, step by step; yields what each has done.

    Args:
        templates: by model, a backbone of it, which new ones are written after.
        journal: is told of each step, and of the one that fails, after which the rest is left.
    """
    repository = Backbones(root)
    if not plan.changes_nothing:
        journal.tell("planned", "", plan.summary)
    for change in plan.starts:
        name = change.backbone.name
        with journal.telling("backbone-started", name, change.reason):
            repository.copy(name, templates[change.backbone.model])
            triton.load(name)
        yield f"started {name}"
    for move in plan.moves:
        if len(move.after) == 1 and move.before:
            moved = rebind(root, triton, move.task, move.after[0], journal=journal, why=move.reason)
            if moved is not None:
                yield f"{move.task} is on {moved.backbone} now, after {moved.seconds * 1e3:.0f} ms"
    for change in plan.stops:
        name = change.backbone.name
        with journal.telling("backbone-stopped", name, change.reason):
            repository.put_away(name)
            triton.unload(name)
        yield f"stopped {name}, which has a file {UNLOADED} now"
