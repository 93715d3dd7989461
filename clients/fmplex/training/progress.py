"""How far a training is: what is being done, the figures so far and the time left. Imports no torch.

`Progress` counts the work and tells a `Report`, any function that takes a `Status`. `shown` makes one that a person
reads: a bar on a terminal, a line every ten seconds elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rich.console import Console

from fmplex.training.display import Bar, Lines, ticking


@dataclass(frozen=True, slots=True)
class Status:
    """A training at one moment."""

    task: str
    phase: str = ""  # what is being done, e.g. "loading the backbone" or "epoch 2 of 3"
    done: float = 0.0  # of all the work, 0 to 1
    seconds: float = 0.0  # since the beginning
    left: float | None = None  # seconds to go, by the pace so far; None while that cannot be told
    loss: float | None = None  # of the last step
    validation_loss: float | None = None
    figure: tuple[str, float] | None = None  # of the validation rows, e.g. ("accuracy", 0.91)

    @property
    def figures(self) -> str:
        """Loss and the validation rows' figure (their loss, for kinds that have none) as text; empty at first."""
        found = {} if self.loss is None else {"loss": self.loss}
        if self.figure is not None:
            found[f"validation {self.figure[0].replace('_', ' ')}"] = self.figure[1]
        elif self.validation_loss is not None:
            found["validation loss"] = self.validation_loss
        return ", ".join(f"{name} {value:.3f}" for name, value in found.items())


Report = Callable[[Status], None]


class Progress:
    """Counts a training's work, in rows through the backbone, and reports after each piece of it.

    Args:
        report: called in the thread that trains; an exception that it raises ends the training.
        clock: seconds that only go up.
    """

    def __init__(
        self, task: str = "", report: Report | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._report, self._clock, self._began = report, clock, clock()
        self._status = Status(task)
        self._expected = self._done = 0.0
        self._working_since: float | None = None

    @staticmethod
    def of(wanted: Wanted, task: str) -> Progress:
        """The one that `progress=` names; True is for `shown`."""
        return wanted if isinstance(wanted, Progress) else Progress(task, wanted if callable(wanted) else None)

    def expect(self, rows: float) -> None:
        """So much more work is ahead."""
        self._expected += rows

    def phase(self, what: str) -> None:
        """Another part of it begins."""
        self._change(phase=what)

    def advance(self, rows: float, loss: float | None = None) -> None:
        """So much of the work is done."""
        self._done += rows
        self._change(**({} if loss is None else {"loss": loss}))

    def skip(self, rows: float) -> None:
        """So much of the work is not to be done: it is left out, or was done in a former run."""
        self._expected -= rows
        self._change()

    def validated(self, loss: float, figure: tuple[str, float] | None) -> None:
        """The validation rows were compared."""
        self._change(validation_loss=loss, figure=figure)

    def _change(self, **fields: object) -> None:
        if self._report is None:
            return
        now = self._clock()
        if self._expected and self._working_since is None:
            self._working_since = now  # loading is no measure of the pace
        part = min(1.0, self._done / self._expected) if self._expected > 0 else 0.0
        left = (now - (self._working_since or now)) * (1 - part) / part if part else None
        self._status = replace(self._status, done=part, seconds=now - self._began, left=left, **fields)  # type: ignore[arg-type]
        self._report(self._status)


Wanted = bool | Report | Progress  # of `progress=`: False for silence, True for `shown`, or who is to be told


@contextmanager
def shown(task: str, console: Console | None = None) -> Iterator[Progress]:
    """A Progress that is shown on stderr until the end of the block."""
    console = console or Console(stderr=True)
    if console.is_terminal:
        with Bar(console) as bar:
            yield Progress(task, bar)
        return
    lines = Lines(console.file)
    with ticking(lines.tick):
        yield Progress(task, lines)


@contextmanager
def told(wanted: Wanted, task: str) -> Iterator[Progress]:
    """The Progress that `progress=` asks for."""
    if wanted is True:
        with shown(task) as progress:
            yield progress
        return
    yield Progress.of(wanted, task)
