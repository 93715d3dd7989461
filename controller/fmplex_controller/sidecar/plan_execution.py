"""A plan is carried out: backbones are started, tasks rebound, and what is left empty is stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from fmplex_backend.repository.directory import UNLOADED
from fmplex_controller.planner.situation import Plan
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar.backbones import Backbones
from fmplex_controller.sidecar.rebinding import rebind
from fmplex_controller.sidecar.triton import Triton


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
