"""A training's status for people: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:
    from fmplex.training.progress import Status

EVERY_S = 10.0  # between two lines
TICK_S = 0.5


class Bar:
    """One bar, which rich redraws by itself; it pulses until the first piece of work is done."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = RichProgress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("", total=None, figures="", left="")

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, status: Status) -> None:
        self._bar.update(
            self._task,
            total=1.0 if status.done else None,
            completed=status.done,
            description=f"{status.task}: {status.phase}",
            figures=status.figures,
            left=time_left(status.left),
        )


class Lines:
    """A line at once, and one every `every` seconds with whatever is then known.

    Args:
        clock: seconds that only go up.
    """

    def __init__(self, file: IO[str], every: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._every, self._clock = file, every, clock
        self._lock = threading.Lock()
        self._status: tuple[Status, float] | None = None  # the last, and when it came
        self._due = clock()

    def __call__(self, status: Status) -> None:
        self._status = status, self._clock()
        self.tick()

    def tick(self) -> None:
        """Print a line if one is due: while a long piece of work reports nothing, its last status again."""
        with self._lock:
            now = self._clock()
            if self._status is None or now < self._due:
                return
            self._due = now + self._every
            status, came = self._status
            print(line(status, now - came), file=self._file, flush=True)


def line(status: Status, ago: float = 0.0) -> str:
    """A status that came `ago` seconds ago."""
    parts = [f"{status.task}: {status.phase}", f"{status.done:.0%}", status.figures]
    parts += [f"{duration(status.seconds + ago)} gone", time_left(status.left)]
    return ", ".join(part for part in parts if part)


def time_left(seconds: float | None) -> str:
    """Empty where it is not known."""
    return "" if seconds is None else f"{duration(seconds)} left"


def duration(seconds: float) -> str:
    """As 0:07, 12:30 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def ticking(tick: Callable[[], None], every: float = TICK_S) -> Iterator[None]:
    """Call `tick` again and again from a thread of its own, until the end of the block."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(every):
            tick()

    thread = threading.Thread(target=run, name="fmplex-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
