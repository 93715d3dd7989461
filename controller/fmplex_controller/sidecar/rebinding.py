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
CHECK_S = 1.5  # from the write on, for the new backbone to confirm
LEAST_CHECK_S = 0.1
ATTACH_WAIT_S = 0.5  # for an engine that is at a long batch, once the task is loaded
ATTACH_EVERY_S = 0.05  # each time takes the backbone a millisecond or two, which its batches go without


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

    In this order: the new backbone reads the task's version and keeps its tag for it, the entry is written, the server
    loads it, and the new backbone says that it serves the task. Where it could not keep the tag, or the task was
    written meanwhile, it says so before the server loads the entry. Until then requests go to the former backbone,
    which serves a task that has moved for half a minute more, and what it holds to the end. What the new backbone
    refuses to read is not written. Where it refuses the task later, or does not answer, or loading it raises, the entry
    is as it was, and loaded again where it may have been. Raises TaskProblem, Refused, or ServerProblem.

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
    seen = repository.seen(task)
    if seen.backbone == backbone:
        return None
    with ThreadPoolExecutor(2) as pool:  # both backbones are asked while the entry is checked
        read = pool.submit(triton.prefetch, backbone, task, PROBE_S)
        asked = pool.submit(lambda: _ahead(triton, seen.backbone, task) if ahead_s is None else ahead_s)
        repository.check(task, backbone)
        found = read.result()
        if found.prefetched:
            raise TaskProblem(f"the backbone {backbone!r} refuses {task!r}: {found.prefetched}")
        ahead_s = asked.result()
    # Others wait for its lock: nobody is waited for meanwhile.
    rebound = repository.rebind(task, backbone, ahead_s, seen)
    if rebound is None:
        return None
    until = time.perf_counter() + CHECK_S
    is_agreed = rebound.as_seen and rebound.tag == found.reserved and until < start + found.reserved_s
    move = _Move(repository, triton, rebound, until)
    try:
        if not is_agreed:
            move.agree()
        move.put_in_force()
        return Moved(task, move.rebound.former, backbone, move.rebound.tag, move.in_force_at - start)
    except BaseException as error:
        move.undo(error)
        raise


class _Move:
    """A task whose entry is written: the server loads it, and the new backbone says that it serves it.

    Args:
        until: by `time.perf_counter`, when the backbone is to have said so.
    """

    def __init__(self, repository: Rebinding, triton: Triton, rebound: Rebound, until: float) -> None:
        self.repository, self.triton, self.rebound, self.until = repository, triton, rebound, until
        self.in_force_at = 0.0
        self._told: TaskStatus | None = None
        self._is_sent = False

    def agree(self) -> None:
        """Have the backbone say that it serves the task before the server loads it; raises TaskProblem.

        Where requests of another one might come with its tag there, it gets another tag, once.
        """
        told = self._tell()
        if told.contested and (again := self.repository.retag(self.rebound)) is not None:
            self.rebound = again
            told = self._tell()
        _check_served(self.rebound, told)
        self._told = told

    def put_in_force(self) -> None:
        """Let the server load the entry, and follow the task until the engine has attached it; raises FmplexError."""
        self._is_sent = True
        with ThreadPoolExecutor(1) as pool:  # a backbone that has agreed reads the entry while the server does
            telling = None if self._told is not None else pool.submit(self._tell)
            self.triton.load(self.rebound.task)
            self.in_force_at = time.perf_counter()
            if telling is not None:
                self._told = telling.result()
                _check_served(self.rebound, self._told)
        if self._told is not None and self._told.attached is False:
            self._follow()

    def undo(self, error: BaseException) -> None:
        """Bind the task as it was; where that cannot be, `error` is told with it."""
        rebound = self.rebound
        try:
            self.repository.undo(rebound)
        except (FmplexError, OSError) as another:
            raise TaskProblem(
                f"{str(error).rstrip('.')}. And {rebound.task!r} could not be bound to {rebound.former!r} again: "
                f"{str(another).rstrip('.')}. Bind it yourself: fmplex rebind {rebound.task} {rebound.former}"
            ) from error
        if self._is_sent:  # what raises may have been done, where it was the answer that did not come
            with suppress(FmplexError):
                self.triton.load(rebound.task)

    def _follow(self) -> None:
        """Until the engine has attached a loaded task; raises TaskProblem where it cannot.

        It does so after the batch at hand, which is too long to be waited for before the task is loaded.
        """
        self.until = time.perf_counter() + ATTACH_WAIT_S
        with suppress(ServerProblem):  # no answer is no refusal
            while time.perf_counter() < self.until:
                time.sleep(ATTACH_EVERY_S)
                told = self._tell()
                _check_served(self.rebound, told)
                if told.attached is not False:
                    return

    def _tell(self) -> TaskStatus:
        """What the backbone tells of the task once it has read it; raises TaskProblem where it has no such task."""
        rebound, left = self.rebound, max(LEAST_CHECK_S, self.until - time.perf_counter())
        told = by_name(self.triton.status(rebound.backbone, rebound.task, left).tasks).get(rebound.task)
        if told is None or told.state == "leaving":
            raise TaskProblem(
                f"the backbone {rebound.backbone!r} does not find {rebound.task!r} in its model repository. Name the "
                f"one that the server runs on, in the place of {self.repository.root}"
            )
        return told


def _check_served(rebound: Rebound, told: TaskStatus) -> None:
    if told.contested or not told.healthy:
        raise TaskProblem(f"the backbone {rebound.backbone!r} refuses {rebound.task!r}: {told.error}")


def _ahead(triton: Triton, backbone: str, task: str) -> float:
    """Seconds by which a task is ahead of its share; 0 where its backbone does not tell."""
    try:
        told = by_name(triton.status(backbone, timeout=AHEAD_WAIT_S).tasks).get(task)
    except ServerProblem:  # a backbone that is dead is a reason to leave it
        return 0.0
    return 0.0 if told is None else told.ahead_s
