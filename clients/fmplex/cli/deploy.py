"""`fmplex task deploy`: a trained version put into a repository, when `train` could not do it itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmplex.cli.options import DEFAULT, AsJson, Name, Repo, Server
from fmplex.cli.shown import errors_shown, print_result


def deploy(
    name: Name,
    source: Annotated[Path, typer.Option("--from", help="Directory of a version, as `train` names it.")],
    backbone: Annotated[str, typer.Option(help="Name of the backbone in the repository.")] = "minilm",
    repository: Repo = DEFAULT,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Save a trained version from elsewhere as a task; with --server, load it and wait until it answers."""
    with errors_shown(as_json):
        from fmplex.task.backbone import Backbone
        from fmplex.task.task import Task

        task = Task.load(source, Backbone(backbone, repository=repository))
        task.name = name
        path = task.deploy(server, repository) if server else task.save(repository)
        where = f"served at {server}" if server else f"saved in {path}"
        print_result({"task": name, "path": str(path), "served": server or None}, f"{name}: {where}", as_json)
