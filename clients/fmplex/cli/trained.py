"""The end of `fmplex task train`: what was trained is saved whatever happens, served, and said."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmplex.cli.options import SERVER
from fmplex.task.serving import not_served
from fmplex.task.task import Task
from fmplex.training.interrupt import Interrupted
from fmplex.training.progress import Progress
from fmplex_backend.decoders.rows import Rows
from fmplex_backend.errors import FmplexError, ServerProblem, TaskProblem

SHOWN_CHARACTERS = 60


class Finisher:
    """A task in training.

    Args:
        remarks: what a person should know about the rows.
        server: an address; "" where the task is only to be saved.
        checkpoint: the directory from which an interrupted training goes on.
        held: whether the version that serves goes on, and this one is only saved.
        quiet: whether remarks about the rows are left to `document`.
    """

    def __init__(
        self,
        task: Task,
        remarks: Sequence[str],
        repository: Path,
        server: str,
        checkpoint: Path,
        progress: Progress,
        *,
        held: bool,
        quiet: bool,
    ) -> None:
        self.task, self.repository, self.server, self.held = task, repository, "" if held else server, held
        self.checkpoint, self.progress, self.quiet = checkpoint, progress, quiet
        self.path = Path()
        self._example: Any = ""
        self._notes = [*task.remarks, *remarks]

    def fit(self, rows: Rows, *, test: Rows | None, **options: Any) -> None:
        """Fit and evaluate; a task that is trained and could not be evaluated is saved before the error is raised."""
        if not self.quiet:
            for note in self._notes:  # before the minutes that follow, not after them
                print(f"note: {note}", file=sys.stderr)
        self._example = min(rows.items[:20], key=lambda item: len(str(item)))
        try:
            self.task.fit(rows, test=test, checkpoint=self.checkpoint, progress=self.progress, **options)
        except KeyboardInterrupt as error:
            if self.task.history is None:
                raise self._interrupted(error) from None
            raise Interrupted(f"interrupted during the test. {self._saved_words()}") from None
        except FmplexError as error:
            if self.task.history is None:
                raise
            raise TaskProblem(f"the test failed: {error}. {self._saved_words()}") from error

    def save_and_serve(self) -> None:
        """Save, and load it on the server where there is one; raises an error that says where the task is."""
        self._save()
        if not self.server:
            return
        self.progress.phase(f"loading it on {self.server}")
        try:
            self.task.serve(self.server)
        except ServerProblem as error:
            raise not_served(error, self.task.name, self.server, self.path) from error
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted while it was loaded on {self.server}. {self._where()}") from None

    def document(self) -> dict[str, Any]:
        """What was done, for scripts."""
        return {
            "task": self.task.name,
            "path": str(self.path),
            "metrics": self.task.metrics,
            "served": self.server or None,
            "ask": self._ask_command(),
            "notes": self._notes,
        }

    def words(self) -> str:
        """What was done, and what comes next, for people."""
        served = f"served at {self.server}" if self.server else f"to serve it: {self._load_command()}"
        if self.held:
            served = f"to try it: fmplex task canary {self.task.name}, or shadow; to serve it: fmplex task promote"
        lines = [
            f"{self.task.name}: saved in {self.path}",
            *self._figures(),
            served,
            f"to ask it: {self._ask_command()}",
        ]
        return "\n".join(lines)

    # -- saving

    def _save(self) -> None:
        self.progress.phase("saving")
        try:
            self.path = self.task.save(self.repository, held=self.held, server=self.server)
        except (FmplexError, OSError) as error:
            aside = Path(tempfile.mkdtemp(prefix=f"fmplex-{self.task.name}-"))
            self.task.write(aside)
            raise TaskProblem(
                f"{error}. Nothing is lost: what was trained is in {aside}. To save it, when that is mended: "
                f"fmplex task deploy {self.task.name} --from {aside} --backbone {self.task.backbone.name} "
                f"-r {shlex.quote(str(self.repository))}" + (f" --server {self.server}" if self.server else "")
            ) from error

    def _saved_words(self) -> str:
        self._save()
        return self._where()

    def _where(self) -> str:
        return f"Nothing is lost: what was trained is saved in {self.path}. To serve it: {self._load_command()}"

    def _interrupted(self, error: KeyboardInterrupt) -> Interrupted:
        if isinstance(error, Interrupted):
            return error
        if self.checkpoint.exists():
            return Interrupted(f"interrupted. The same command goes on from the checkpoint {self.checkpoint}")
        return Interrupted("interrupted before the first step: there is nothing to save yet")

    # -- words

    def _figures(self) -> list[str]:
        """The main figure beside that of the head alone, and the others."""
        task, metrics = self.task, self.task.metrics
        if task.evaluation is None:
            history = task.history
            if history is None or history.best_figure is None:
                return []
            return [_figure(history.figure, history.best_figure, history.head_only_figure, "the validation rows")]
        names = list(task.evaluation.figures)
        where = f"{task.evaluation.rows} test rows"
        main = _figure(names[0], task.evaluation[names[0]], metrics.get(f"head_only_{names[0]}"), where)
        others = ", ".join(f"{name} {task.evaluation[name]:g}" for name in names[1:])
        return [main, *([others] if others else [])]

    def _load_command(self) -> str:
        return f"fmplex task load {self.task.name} --server {self.server or SERVER}"

    def _ask_command(self) -> str:
        text = self.task.encoder.reads().show(self._example)
        elsewhere = f" --server {self.server}" if self.server not in ("", SERVER) else ""
        return f"fmplex predict {self.task.name} {shlex.quote(text[:SHOWN_CHARACTERS])}{elsewhere}"


def _figure(name: str, value: float, alone: Any, where: str) -> str:
    compared = "" if alone is None else f" (the head alone, without the adapter: {alone:.4g})"
    return f"{name} {value:.4g} on {where}{compared}"
