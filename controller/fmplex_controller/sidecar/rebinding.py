"""A task changes its backbone while it is called: nothing fails, and the former backbone answers what it has."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fmplex.client.status import by_name
from fmplex_backend.errors import FmplexError, ServerProblem, TaskProblem
from fmplex_backend.repository.rebinding import Rebinding, Rebound
from fmplex_backend.status import TaskStatus
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar.triton import PROBE_S, Triton

AHEAD_WAIT_S = 0.5  # for the former backbone's `ahead_s`: without an answer it is 0, rather than that the move is late
CHECK_S = 1.5  # from the write on, for the new backbone to confirm: the former one serves the task for two seconds more
LEAST_CHECK_S = 0.1
ATTACH_WAIT_S = 0.5  # for an engine that is at a long batch, once the task is loaded
ATTACH_EVERY_S = 0.005


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

    In this order: the new backbone reads the task's version, the entry is written, the new backbone says that it serves
    the task, and the server loads the entry. Until then requests go to the former backbone, which serves a task that
    has moved for two seconds more, and what it holds to the end. What the new backbone refuses to read is not written.
    Where it refuses the task later, or does not answer, the entry is as it was before these two seconds are over; where
    loading it raises, the entry is as it was then, and loaded. Raises TaskProblem, Refused, or ServerProblem.

    Args:
        journal: is told of it, also where it fails.
        why: for the journal.
        ahead_s: see `Rebinding.rebind`; None: the former backbone is asked.
    """
    try:
        moved = _moved(Rebinding(root), triton, task, backbone, ahead_s)
    except (FmplexError, OSError) as error:
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
        repository.check(task, backbone)
        if problem := read.result():
            raise TaskProblem(f"the backbone {backbone!r} refuses {task!r}: {problem}")
        ahead_s = asked.result()
    rebound = repository.rebind(task, backbone, ahead_s)  # others wait for its lock: nobody is waited for meanwhile
    if rebound is None:
        return None
    is_sent = False
    try:
        until = time.perf_counter() + CHECK_S
        told = _told(triton, rebound, repository.root, until)
        if told.contested and (again := repository.retag(rebound)) is not None:
            rebound = again
            told = _told(triton, rebound, repository.root, until)
        _check_served(rebound, told)
        is_sent = True
        triton.load(task)
        seconds = time.perf_counter() - start
        if told.attached is False:
            _follow(triton, rebound, repository.root)
    except BaseException as error:
        _undo(repository, rebound, error)
        if is_sent:  # what raises may have been done, where it was the answer that did not come
            with suppress(FmplexError):
                triton.load(task)
        raise
    return Moved(task, rebound.former, backbone, rebound.tag, seconds)


def _undo(repository: Rebinding, rebound: Rebound, error: BaseException) -> None:
    """Bind the task as it was; where that cannot be, `error` is told with it."""
    try:
        repository.undo(rebound)
    except (FmplexError, OSError) as another:
        raise TaskProblem(
            f"{str(error).rstrip('.')}. And {rebound.task!r} could not be bound to {rebound.former!r} again: "
            f"{str(another).rstrip('.')}. Bind it yourself: fmplex rebind {rebound.task} {rebound.former}"
        ) from error


def _ahead(triton: Triton, backbone: str, task: str) -> float:
    """Seconds by which a task is ahead of its share; 0 where its backbone does not tell."""
    try:
        told = by_name(triton.status(backbone, timeout=AHEAD_WAIT_S).tasks).get(task)
    except ServerProblem:  # a backbone that is dead is a reason to leave it
        return 0.0
    return 0.0 if told is None else told.ahead_s


def _follow(triton: Triton, rebound: Rebound, root: Path) -> None:
    """Until the engine has attached a loaded task; raises TaskProblem where it cannot.

    It does so after the batch at hand, which is too long to be waited for before the task is loaded.
    """
    until = time.perf_counter() + ATTACH_WAIT_S
    with suppress(ServerProblem):  # no answer is no refusal
        while time.perf_counter() < until:
            time.sleep(ATTACH_EVERY_S)
            told = _told(triton, rebound, root, until)
            _check_served(rebound, told)
            if told.attached is not False:
                return


def _check_served(rebound: Rebound, told: TaskStatus) -> None:
    if told.contested or not told.healthy:
        raise TaskProblem(f"the backbone {rebound.backbone!r} refuses {rebound.task!r}: {told.error}")


def _told(triton: Triton, rebound: Rebound, root: Path, until: float) -> TaskStatus:
    """What the backbone tells of the task once it has read it; raises TaskProblem where it has no such task."""
    left = max(LEAST_CHECK_S, until - time.perf_counter())
    told = by_name(triton.status(rebound.backbone, rebound.task, left).tasks).get(rebound.task)
    if told is None or told.state == "leaving":
        raise TaskProblem(
            f"the backbone {rebound.backbone!r} does not find {rebound.task!r} in its model repository. Name the one "
            f"that the server runs on, in the place of {root}"
        )
    return told
