"""`fmplex task check`: what a server would refuse, said without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmplex.cli.options import DEFAULT, AsJson
from fmplex.cli.shown import PROBLEM, errors_shown, print_result
from fmplex_backend.errors import FmplexError, TaskProblem
from fmplex_backend.repository.configs import CONFIG, backbone_stepped_into, read_config
from fmplex_backend.repository.grouping import GroupRepository
from fmplex_backend.repository.groups import GroupSpec
from fmplex_backend.repository.tasks import BrokenTask
from fmplex_backend.repository.writer import ModelRepository

if TYPE_CHECKING:
    from fmplex.task.backbone import Backbone


def check(
    directory: Annotated[
        Path | None,
        typer.Argument(help="Directory of a task or of a version; default: every task.", file_okay=False),
    ] = None,
    repository: Annotated[
        Path | None,
        typer.Option(
            "--repository",
            "-r",
            help="Model repository that it is in, or is meant for; default: the directory that it is in.",
            file_okay=False,
        ),
    ] = None,
    backbone: Annotated[str, typer.Option(help="Backbone of a version's directory: a name, path or hub id.")] = "",
    as_json: AsJson = False,
) -> None:
    """Check, without a server, that a server would accept a task, or all tasks; the exit status is 1 if not."""
    if directory is None:
        _check_all(repository or DEFAULT, as_json)
        return
    with errors_shown(as_json):
        if (directory / "task.json").is_file() and not (directory / CONFIG).is_file():
            _check_version(directory.resolve(), backbone, repository)
        else:
            _Checker(ModelRepository(repository or directory.resolve().parent)).check(directory)
        print_result({"directory": str(directory), "ok": True}, f"{directory}: ok", as_json)


def _check_all(root: Path, as_json: bool) -> None:
    with errors_shown(as_json):
        checker = _Checker(ModelRepository(root))
        results: list[dict[str, Any]] = []
        for name in sorted(checker.models.tasks()):
            try:
                checker.check(root / name)
            except FmplexError as error:
                results.append({"task": name, "ok": False, "error": str(error)})
            else:
                results.append({"task": name, "ok": True, "error": None})
            if not as_json:
                print(f"{name}: {results[-1]['error'] or 'ok'}", flush=True)
        for name, problem in checker.models.unreadable().items():
            results.append({"task": name, "ok": False, "error": problem})
            if not as_json:
                print(f"{name}: {problem}")
        if as_json:
            print(json.dumps(results, ensure_ascii=False))
        if not all(result["ok"] for result in results):
            raise typer.Exit(PROBLEM)


class _Checker:
    """Checks tasks for the backbones of a repository, each of which is loaded once."""

    def __init__(self, models: ModelRepository) -> None:
        self.models = models
        self._backbones: dict[str, Backbone] = {}

    def check(self, directory: Path) -> None:
        """Raise what is wrong with a task's directory."""
        from fmplex.task.backbone import Backbone
        from fmplex.task.checking import check_task

        name, entry = self.models.entry_in(directory)
        if isinstance(entry, BrokenTask):
            raise entry.error
        if isinstance(entry, GroupSpec):
            GroupRepository(self.models.root).check_group(entry)
            return
        if name not in self._backbones:
            self._backbones[name] = Backbone(name, repository=self.models.root)
        check_task(entry, self._backbones[name])


def _check_version(directory: Path, backbone: str, repository: Path | None) -> None:
    """A version, in a task's directory or alone; in a task's, that names the backbone and lies in the repository."""
    from fmplex.task.backbone import Backbone
    from fmplex.task.task import Task

    bound = backbone or backbone_stepped_into(read_config(directory.parent / CONFIG))
    if not bound:
        raise TaskProblem(f"{directory} does not say which backbone it is for. Name it with --backbone")
    around = directory.parent.parent
    root = repository or (around if (around / bound / CONFIG).is_file() else DEFAULT)
    Task.load(directory, Backbone(bound, repository=root)).check()
