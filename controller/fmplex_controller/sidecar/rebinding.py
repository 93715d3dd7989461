"""A task changes its backbone while it is called: nothing fails, and the former backbone answers what it has."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from fmplex.client.status import by_name
from fmplex_backend.errors import FmplexError, TaskProblem
from fmplex_backend.repository.rebinding import Rebinding, Rebound
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar.triton import PROBE_S, Triton


@dataclass(frozen=True, slots=True)
class Moved:
    """What a rebind has done; `seconds` passed until the server sent requests to the new backbone."""

    task: str
    former: str
    backbone: str
    tag: int
    seconds: float


def rebind(root: Path, triton: Triton, task: str, backbone: str, *, journal: Journal, why: str) -> Moved | None:
    """Bind a task to another backbone of its model, on disk and on the server; None where it is bound to it already.

    The entry is written, the new backbone reads and attaches the task, and then the server loads the entry. Until then
    requests go to the former backbone, which serves a task that has moved for two seconds more, and what it holds to
    the end. Where the new backbone or the server refuses, or does not answer, the entry is as it was before these two
    seconds are over. Raises TaskProblem, Refused, or ServerProblem.

    Args:
        journal: is told of it, also where it fails.
        why: for the journal.
    """
    start = time.perf_counter()
    try:
        rebound = _rebound(root, triton, task, backbone)
    except FmplexError as error:
        journal.tell("rebound", task, f"to {backbone}: {why}", str(error))
        raise
    if rebound is None:
        return None
    moved = Moved(task, rebound.former, backbone, rebound.tag, time.perf_counter() - start)
    journal.tell(
        "rebound", task, f"from {moved.former} to {backbone}, in force after {moved.seconds * 1e3:.0f} ms: {why}"
    )
    return moved


def _rebound(root: Path, triton: Triton, task: str, backbone: str) -> Rebound | None:
    repository = Rebinding(root)
    rebound = repository.rebind(task, backbone)
    if rebound is None:
        return None
    try:
        _check_attached(triton, rebound, root)
        triton.load(task)
    except FmplexError:
        repository.undo(rebound)
        raise
    return rebound


def _check_attached(triton: Triton, rebound: Rebound, root: Path) -> None:
    """Let the backbone read the task; raises TaskProblem where it does not serve it."""
    told = by_name(triton.status(rebound.backbone, rebound.task, PROBE_S).tasks).get(rebound.task)
    if told is None or told.state == "leaving":
        raise TaskProblem(
            f"the backbone {rebound.backbone!r} does not find {rebound.task!r} in its model repository. Name the one "
            f"that the server runs on, in the place of {root}"
        )
    if not told.healthy:
        raise TaskProblem(f"the backbone {rebound.backbone!r} refuses {rebound.task!r}: {told.error}")
