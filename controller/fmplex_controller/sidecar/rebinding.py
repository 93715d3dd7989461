"""A task changes its backbone while it is called: nothing fails, and the former backbone answers what it has."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fmplex.client.status import by_name
from fmplex_backend.errors import FmplexError, ServerProblem, TaskProblem
from fmplex_backend.repository.rebinding import Rebinding, Rebound
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar.triton import PROBE_S, Triton

AHEAD_WAIT_S = 0.5  # for what is worth little beside a move that comes late


@dataclass(frozen=True, slots=True)
class Moved:
    """What a rebind has done; `seconds` passed until the server sent requests to the new backbone."""

    task: str
    former: str
    backbone: str
    tag: int
    seconds: float


def rebind(
    root: Path, triton: Triton, task: str, backbone: str, *, journal: Journal, why: str, ahead_s: float | None = None
) -> Moved | None:
    """Bind a task to another backbone of its model, on disk and on the server; None where it is bound to it already.

    The new backbone reads the task's version, the entry is written, and the server loads it. Until then requests go to
    the former backbone, which serves a task that has moved for two seconds more, and what it holds to the end. What the
    new backbone refuses is not written. Where it turns out later that it, or the server, refuses or does not answer,
    the entry is as it was before these two seconds are over. Raises TaskProblem, Refused, or ServerProblem.

    Args:
        journal: is told of it, also where it fails.
        why: for the journal.
        ahead_s: see `Rebinding.rebind`; None: the former backbone is asked.
    """
    try:
        moved = _moved(Rebinding(root), triton, task, backbone, ahead_s)
    except FmplexError as error:
        journal.tell("rebound", task, f"to {backbone}: {why}", str(error))
        raise
    if moved is None:
        return None
    journal.tell(
        "rebound", task, f"from {moved.former} to {backbone}, in force after {moved.seconds * 1e3:.0f} ms: {why}"
    )
    return moved


def _moved(repository: Rebinding, triton: Triton, task: str, backbone: str, ahead_s: float | None) -> Moved | None:
    start = time.perf_counter()
    former = repository.backbone_of(task)
    if former == backbone:
        return None
    with ThreadPoolExecutor(2) as pool:  # both backbones are asked while the entry is checked
        asked = pool.submit(lambda: _ahead(triton, former, task) if ahead_s is None else ahead_s)
        read = pool.submit(triton.prefetch, backbone, task, PROBE_S)

        def last() -> float:
            if problem := read.result():
                raise TaskProblem(f"the backbone {backbone!r} refuses {task!r}: {problem}")
            return asked.result()

        rebound = repository.rebind(task, backbone, last)
    if rebound is None:
        return None
    is_loaded = False
    try:
        if read.result() is None:  # an older backbone
            _check_attached(triton, rebound, repository.root)
        triton.load(task)
        is_loaded, seconds = True, time.perf_counter() - start
        _check_attached(triton, rebound, repository.root)
    except FmplexError:
        repository.undo(rebound)
        if is_loaded:
            with contextlib.suppress(FmplexError):  # what went wrong first is what is told
                triton.load(task)
        raise
    return Moved(task, rebound.former, backbone, rebound.tag, seconds)


def _ahead(triton: Triton, backbone: str, task: str) -> float:
    """Seconds by which a task is ahead of its share; 0 where its backbone does not tell."""
    try:
        told = by_name(triton.status(backbone, timeout=AHEAD_WAIT_S).tasks).get(task)
    except ServerProblem:  # a backbone that is dead is a reason to leave it
        return 0.0
    return 0.0 if told is None else told.ahead_s


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
