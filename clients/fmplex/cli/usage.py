"""`fmplex usage`: the seconds of its backbone that each task was charged."""

from __future__ import annotations

from typing import Annotated

import typer

from fmplex.cli import columns
from fmplex.cli.events import Records
from fmplex.cli.options import DEFAULT, SERVER, AsJson, Asked, Repo
from fmplex.cli.shown import errors_shown
from fmplex.cli.spans import Since, time_of

COLUMNS = ("task", "backbone", "seconds", "share", "preparation_s", "requests", "items")


def usage(
    since: Since = "",
    repository: Repo = DEFAULT,
    server: Asked = SERVER,
    records: Records = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the seconds of its backbone's time that each task was charged; they sum to the time it was busy.

    They are recorded by the controller beside the server, once a second, and kept over restarts of all processes.
    """
    from fmplex_controller.records import usage as records_of
    from fmplex_controller.records.folder import existing_folder

    with errors_shown(as_json):
        if as_csv and as_json:
            raise typer.BadParameter("--csv and --json exclude each other", param_hint="--csv")
        start, folder = time_of(since), existing_folder(repository, server, records)
        found = records_of.read_usage(folder, None if start is None else start.timestamp())
        if as_json:
            print(found.model_dump_json())
        elif as_csv:
            print(records_of.as_csv(found), end="")
        else:
            charged = {each.backbone: each.charged_s for each in found.backbones}
            rows = [
                {
                    "task": row.task,
                    "backbone": row.backbone,
                    "seconds": f"{row.seconds:.3f}",
                    "share": f"{row.seconds / total:.1%}" if (total := charged.get(row.backbone, 0.0)) else "-",
                    "preparation_s": f"{row.preparation_s:.3f}",
                    "requests": str(row.requests),
                    "items": str(row.items),
                }
                for row in found.tasks
            ]
            columns.show(rows, COLUMNS, ["items", "preparation_s", "backbone"])
            for each in found.backbones:
                print(f"{each.backbone}: busy {each.busy_s:.3f} s, charged {each.charged_s:.3f} s")
