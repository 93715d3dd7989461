"""`fmplex events`: what has been done to a server by its controller and by commands, and why."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmplex.cli.options import DEFAULT, SERVER, AsJson, Asked, Repo
from fmplex.cli.shown import errors_shown
from fmplex.cli.spans import Since, time_of

if TYPE_CHECKING:
    from fmplex_controller.records.events import Event

PERIOD_S = 0.3  # between looks at the files

Records = Annotated[
    Path | None,
    typer.Option(
        "--records",
        envvar="FMPLEX_RECORDS",
        help="Directory of what the controller records; default: the one of this server and repository.",
        show_default=False,
        file_okay=False,
    ),
]


def events(
    name: Annotated[str, typer.Argument(help="A task or backbone; default: all, and the server itself.")] = "",
    since: Since = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new events, until Ctrl-C.")] = False,
    repository: Repo = DEFAULT,
    server: Asked = SERVER,
    records: Records = None,
    as_json: AsJson = False,
) -> None:
    """Show what a server's controller and commands on its host have done, and why; with --json a JSON object a line."""
    from fmplex_controller.records.events import Following, read_events
    from fmplex_controller.records.folder import existing_folder

    with errors_shown(as_json):
        start, folder = time_of(since), existing_folder(repository, server, records)
        with contextlib.closing(Following(folder)) as following:  # before the others are read: none may be missed
            shown = set()
            for event in read_events(folder, start, name):
                print(line_of(event, as_json), flush=follow)
                shown.add(event)
            while follow:
                for event in following.new():
                    if event not in shown and name in ("", event.model):
                        print(line_of(event, as_json), flush=True)
                shown.clear()
                time.sleep(PERIOD_S)


def line_of(event: Event, as_json: bool = False) -> str:
    """An event in one line, by the clock of this host."""
    if as_json:
        return event.model_dump_json()
    outcome = "" if event.outcome == "done" else f" -> {' '.join(event.outcome.split())}"
    reason = f": {' '.join(event.reason.split())}" if event.reason else ""
    model = f" {' '.join(event.model.split())}" if event.model else ""  # names may have ends of lines in them, too
    return f"{event.time.astimezone():%Y-%m-%d %H:%M:%S} {event.kind}{model}{reason}{outcome}"
