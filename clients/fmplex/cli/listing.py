"""`fmplex task list` and `show`: a repository's tasks, and how a running server serves them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from fmplex.cli import columns, live
from fmplex.cli.options import DEFAULT, AsJson, Name, Repo
from fmplex.cli.options import Live as LiveServer
from fmplex.cli.rows import row_of, short
from fmplex.cli.shown import errors_shown, print_result
from fmplex_backend.errors import FmplexError, TaskProblem
from fmplex_backend.repository.config import load_task_config
from fmplex_backend.repository.tasks import BrokenTask
from fmplex_backend.repository.writer import ModelRepository

COLUMNS = (
    *("task", "backbone", "tag", "state", "version", "weight", "slo_ms", "queue", "share"),
    *("adapter", "decoder", "figure"),
)
FIRST_TO_GO = ("figure", "adapter", "tag", "backbone", "share", "decoder", "slo_ms", "queue", "weight", "version")


def list_(repository: Repo = DEFAULT, server: LiveServer = "", as_json: AsJson = False) -> None:
    """List all tasks with terms, version and parts; while a server runs, also how it serves them.

    What is wrong with a task is said on stderr. In a pipe, columns are separated by tabs.
    """
    with errors_shown(as_json):
        models = ModelRepository(repository)
        tasks = models.tasks()
        now = live.read(server, {name: backbone for name, (backbone, _) in tasks.items()})
        rows = [row_of(name, *found, now) for name, found in sorted(tasks.items())]
        if as_json:
            print(json.dumps(rows, ensure_ascii=False))
            return
        shown = [each for each in COLUMNS if now is not None or each not in ("queue", "share")]
        columns.show([_cells(row) for row in rows], shown, [each for each in FIRST_TO_GO if each in shown])
        for row in rows:
            if row["error"]:
                print(f"fmplex: {row['task']}: {row['state']}: {row['error']}", file=sys.stderr)
        for name, problem in models.unreadable().items():
            print(f"fmplex: {name}: it may be a task, but {problem}", file=sys.stderr)


def show(name: Name, repository: Repo = DEFAULT, server: LiveServer = "", as_json: AsJson = False) -> None:
    """Show a task in full; while a server runs, also how it serves it."""
    with errors_shown(as_json):
        models = ModelRepository(repository)
        backbone, entry = _found(models, name)
        now = live.read(server, {name: backbone})
        document = row_of(name, backbone, entry, now)
        if now is not None:
            task = now.tasks[name].with_canary
            document |= {"requests": task.requests, "failures": task.failures, "service_s": task.service_s}
            if document["cache"]:
                document |= {"cache_hits": task.cache_hits, "cache_misses": task.cache_misses}
            if backbone in now.backbones:
                document["dtype"] = now.backbones[backbone].dtype
        document["versions"] = models.versions(name)
        if not isinstance(entry, BrokenTask):
            document |= {"path": str(entry.version.path), "task.json": _task_json(entry.version.path)}
        lines = "\n".join(f"{key}: {short(value)}" for key, value in document.items() if value is not None)
        print_result(document, lines, as_json)


def _found(models: ModelRepository, name: str) -> Any:
    """A task that there is, broken or not; raises TaskProblem."""
    found = models.tasks()
    if name not in found:
        models.task(name)  # raises, naming the tasks there are
        raise TaskProblem(f"there is no task {name!r} in {models.root} any more. List them again")
    return found[name]


def _task_json(version: Any) -> dict[str, Any] | None:
    try:
        return load_task_config(version / "task.json").model_dump(mode="json", exclude_none=True)
    except FmplexError:  # its error stands in the row
        return None


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    texts = {key: "-" if value is None else short(value) for key, value in row.items()}
    texts["state"] = texts["state"].removeprefix("serving ") if row["state"] else "-"
    if row["share"] is not None:
        texts["share"] = f"{row['share']:.1%}"
    return texts
