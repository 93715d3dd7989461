"""`fmplex group ...`: several tasks that one request asks, with one input."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from fmplex.cli import columns, live
from fmplex.cli.options import DEFAULT, AsJson, Live, Repo, Server, SloMs
from fmplex.cli.rows import short
from fmplex.cli.shown import after, errors_shown, print_result
from fmplex.client.sync import Client
from fmplex_backend.errors import FmplexError
from fmplex_backend.repository.configs import Terms
from fmplex_backend.repository.grouping import GroupRepository
from fmplex_backend.repository.groups import GroupSpec

app = typer.Typer(help="Groups: several tasks that one request asks, with one input.", no_args_is_help=True)
COLUMNS = ("group", "backbone", "tag", "state", "slo_ms", "tasks")
Name = Annotated[str, typer.Argument(help="Name of the group.")]


@app.command()
def create(
    name: Name,
    tasks: Annotated[list[str], typer.Argument(help="Names of its tasks, which read the same input.")],
    backbone: Annotated[str, typer.Option(help="Name of the backbone that the tasks have to be on.")] = "",
    repository: Repo = DEFAULT,
    slo_ms: SloMs = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Write a group anew that is there: other tasks, or what changed of them.")
    ] = False,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Make a group of tasks of one backbone: a model that answers with all that they answer, in one reply."""
    with errors_shown(as_json):
        models = GroupRepository(repository)
        tag = models.create(name, tasks, backbone=backbone, terms=Terms(slo_ms=slo_ms), replace=replace)
        if server:
            with after(f"{repository / name} is written, but"), Client(server) as client:
                client.load(name)
        document = {"group": name, "tasks": tasks, "tag": tag, "loaded": bool(server)}
        print_result(document, f"{name}: {', '.join(tasks)}", as_json)


@app.command("list")
def list_(repository: Repo = DEFAULT, server: Live = "", as_json: AsJson = False) -> None:
    """List all groups; while a server runs, also how it serves them. What is wrong with one is said on stderr."""
    with errors_shown(as_json):
        rows = _rows(GroupRepository(repository), server)
        if as_json:
            print(json.dumps(rows, ensure_ascii=False))
            return
        shown = [{key: "-" if value is None else _cell(value) for key, value in row.items()} for row in rows]
        columns.show(shown, COLUMNS, ("tag", "slo_ms", "backbone"))
        for row in rows:
            _say_error(row)


@app.command()
def show(name: Name, repository: Repo = DEFAULT, server: Live = "", as_json: AsJson = False) -> None:
    """Show a group; while a server runs, also how it serves it."""
    with errors_shown(as_json):
        models = GroupRepository(repository)
        if name not in models.groups():
            models.group(name)  # raises, naming the groups there are
        (row,) = _rows(models, server, name)
        lines = "\n".join(f"{key}: {_cell(value)}" for key, value in row.items() if value is not None)
        print_result(row, lines, as_json)


@app.command()
def remove(
    name: Name,
    repository: Repo = DEFAULT,
    server: Annotated[str, typer.Option(help="Let this running server unload it first.")] = "",
    as_json: AsJson = False,
) -> None:
    """Delete a group; its tasks stay."""
    with errors_shown(as_json):
        models = GroupRepository(repository)
        if name in models.groups() and server:
            with Client(server) as client:
                client.unload(name)
        models.remove_group(name)
        print_result({"group": name, "removed": True}, f"{name}: removed", as_json)


def _rows(models: GroupRepository, server: str, only: str = "") -> list[dict[str, Any]]:
    groups = {name: found for name, found in sorted(models.groups().items()) if only in ("", name)}
    now = live.read(server, {name: backbone for name, (backbone, _) in groups.items()})
    rows = []
    for name, (backbone, entry) in groups.items():
        row: dict[str, Any] = {"group": name, "backbone": backbone, "tag": entry.vfm, "state": None}
        row |= dict.fromkeys(("slo_ms", "tasks", "error"))
        if isinstance(entry, GroupSpec):
            row["slo_ms"] = None if entry.slo is None else entry.slo * 1000
            row["tasks"] = [member.name for member in entry.members]
            row["error"] = _problem(models, entry)
        else:
            row |= {"state": "refused", "error": str(entry.error)}
        if now is not None:
            told = now.tasks[name]
            row |= {"state": told.state, "requests": told.requests, "failures": told.failures}
            row["error"] = told.error or row["error"]
        rows.append(row)
    return rows


def _problem(models: GroupRepository, entry: GroupSpec) -> str | None:
    try:
        models.check_group(entry)
    except FmplexError as error:
        return str(error)
    return None


def _cell(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else short(value)


def _say_error(row: dict[str, Any]) -> None:
    if row["error"]:
        print(f"fmplex: {row['group']}: {row['state'] or 'not as its tasks are'}: {row['error']}", file=sys.stderr)
