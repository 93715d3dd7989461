"""Measures through a running server how long batches of a backbone take, by rows and by tokens.

A request of n rows that comes alone is a batch of n rows: its usage receipt says how long that was computed, and
whether it really was one batch. A backbone's status says how many tokens the rows had.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fmplex.client.sync import Client
from fmplex_backend.errors import ServerProblem, TaskProblem
from fmplex_backend.families import family
from fmplex_backend.interface import USAGE
from fmplex_backend.profiles import Point, Profile
from fmplex_backend.status import BackboneStatus, TaskStatus

TRIES = 3  # for each measurement that is wanted: others' rows may get into the batch
SAME = 1.05  # a text that is longer by less has been cut off


@dataclass(frozen=True, slots=True)
class Skipped:
    """A batch that could not be measured, and why."""

    rows: int
    length: int
    why: str


class Measuring:
    """Of one backbone, by one of its tasks, whose own adapter and head are measured with it.

    Args:
        times: measurements of each batch, of which the median counts.
    """

    def __init__(self, client: Client, backbone: str, task: str, times: int = 5) -> None:
        self.client, self.backbone, self.task, self.times = client, backbone, task, times
        self._seed = time.time_ns() % 2**32  # rows that others have sent before are no measurement
        self.interface = client.interface(task)
        self.spec = family(client.status(backbone).family)

    def points(self, rows: Sequence[int], lengths: Sequence[int]) -> Iterator[Point | Skipped]:
        """Every combination, lengths in ascending order; raises TaskProblem where the task takes no such items.

        Lengths beyond what the backbone reads are left out, since their rows are cut off.
        """
        if not self.spec.samples(self.interface.takes, 8, 1, 0):
            raise TaskProblem(
                f"{self.task!r} reads {self.interface.takes}, of which no items of a given length can be made. Name a "
                "task that reads texts"
            )
        before = 0.0
        for length in sorted(lengths):
            points = [self._measure(count, length) for count in sorted(rows)]
            tokens = max((each.tokens for each in points if isinstance(each, Point)), default=0.0)
            if before and 0 < tokens < before * SAME:
                return
            before = tokens or before
            yield from points

    def _measure(self, rows: int, length: int) -> Point | Skipped:
        if rows > self.interface.max_batch_size:
            return Skipped(rows, length, f"the task takes {self.interface.max_batch_size} rows in a request")
        seconds: list[float] = []
        before = self._status()
        for _ in range(self.times * TRIES):
            batch, compute_s = self._ask(rows, length)
            if batch == rows:
                seconds.append(compute_s)
            if len(seconds) == self.times:
                break
        after = self._status()
        items = after.items - before.items
        if not seconds or not items:
            return Skipped(rows, length, "it did not run as one batch: it is too large, or others have asked too")
        return Point(
            rows=rows,
            tokens=(after.tokens - before.tokens) / items,
            seconds=statistics.median(seconds),
            times=len(seconds),
        )

    def _ask(self, rows: int, length: int) -> tuple[int, float]:
        """Rows of the batch that a request was in, and the seconds it was computed."""
        self._seed += 1
        items = self.spec.samples(self.interface.takes, length, rows, self._seed)
        receipt = self.client.outputs(self.task, items, usage=True)[0][USAGE]
        return int(receipt[2]), int(receipt[1]) / 1e6

    def _status(self) -> TaskStatus:
        told = [task for task in self.client.status(self.backbone).tasks if task.name == self.task]
        if not told:
            raise ServerProblem(f"{self.task!r} has left the backbone {self.backbone!r} while it was measured")
        return told[0]


def profile_of(status: BackboneStatus, points: Sequence[Point]) -> Profile:
    """The profile of a backbone; raises ServerProblem without any points."""
    if not points:
        raise ServerProblem(
            f"no batch of {status.name!r} could be measured. Try again while nobody else asks its tasks"
        )
    return Profile(
        model=status.model,
        dtype=status.dtype,
        hardware=status.hardware,
        family=status.family,
        max_batch=status.max_batch or max(point.rows for point in points),
        memory=status.memory,
        day=time.strftime("%Y-%m-%d"),
        fmplex=status.fmplex,
        points=tuple(points),
    )
