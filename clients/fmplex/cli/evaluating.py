"""`fmplex task evaluate`: a saved task's figures on labelled rows, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmplex.cli.options import DEFAULT, AsJson, Name, Repo
from fmplex.cli.shown import errors_shown, print_result


def evaluate(
    name: Name,
    data: Annotated[Path, typer.Option(help="Labelled rows, as train takes them, which it was not trained on.")],
    repository: Repo = DEFAULT,
    text: Annotated[
        str, typer.Option(help="Name of the column of texts, or of pictures' paths.", show_default="as train's")
    ] = "",
    label: Annotated[str, typer.Option(help="Name of the label column.", show_default="as train's")] = "",
    as_json: AsJson = False,
) -> None:
    """Compare the answers of a task's served version with labelled rows; nothing is written."""
    with errors_shown(as_json):
        from fmplex.task.task import Task

        task = Task.load(repository / name)
        found = task.evaluate(data, text=text or None, label=label, progress=not as_json)
    words = ", ".join(f"{figure} {value:g}" for figure, value in found.figures.items())
    print_result(
        {"task": name, "rows": found.rows, "figures": found.figures}, f"{name}: {words} on {found.rows} rows", as_json
    )
