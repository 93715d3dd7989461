"""How far a file is: a bar on a terminal, elsewhere a line now and then; on stderr, beside the results."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

EVERY_S = 10.0


class Meter:
    """`total` is in the source's units: bytes, or rows; None where it is not known. Hidden, it says nothing."""

    def __init__(
        self,
        name: str,
        total: int | None,
        *,
        hidden: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._total, self._clock = name, total, clock
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._id: Any = None
        self._hidden = hidden
        if self._console.is_terminal and not hidden:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True, redirect_stdout=False)
            self._id = self._bar.add_task(name, total=total)
        self._said = clock()

    def shown(self) -> AbstractContextManager[Any]:
        """While it is shown."""
        return self._bar or nullcontext()

    def at(self, done: int, rows: int) -> None:
        """So much of the total is read, so many rows are answered."""
        if self._bar is not None:
            self._bar.update(self._id, completed=done, description=f"{self._name}: {rows:,} rows")
        elif not self._hidden and self._clock() - self._said >= EVERY_S:
            self._said = self._clock()
            part = f" ({done / self._total:.0%} read)" if self._total else ""
            self._console.print(f"{self._name}: {rows:,} rows{part}", highlight=False)
