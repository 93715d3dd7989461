"""A bar while a task is fitted, on a terminal; nothing elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Steps of a fitting."""

    def __init__(self, name: str = "", *, shown: bool = False) -> None:
        self.name, self.shown = name, shown
        self._bar: Bar | None = None
        self._task: Any = None

    @contextmanager
    def over(self, steps: int, done: int = 0) -> Iterator[None]:
        """While so many steps are taken, some of which are done."""
        console = Console(stderr=True)
        if not (self.shown and console.is_terminal):
            yield
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, console=console, transient=True) as self._bar:
            self._task = self._bar.add_task(self.name, total=steps, completed=done)
            yield
        self._bar = None

    def step(self, loss: float, epoch: int) -> None:
        """One is done."""
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=f"{self.name}: epoch {epoch + 1}, loss {loss:.3f}")
