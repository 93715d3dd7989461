"""`fmplex rebind`: a task changes its backbone on a running server."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from fmplex.cli import keys
from fmplex.cli.controlling import controlled
from fmplex.cli.events import Records
from fmplex.cli.options import DEFAULT, SERVER, AsJson, Asked, Name, Repo
from fmplex.cli.shown import errors_shown, print_result

COMMAND = "asked for with `fmplex rebind`"


def rebind(
    name: Name,
    backbone: Annotated[str, typer.Argument(help="Name of another backbone of the same model.")],
    repository: Repo = DEFAULT,
    reason: Annotated[str, typer.Option(help="Why, for the log of events.")] = "",
    server: Asked = SERVER,
    control_key: keys.Given = None,
    control_key_file: keys.GivenFile = None,
    records: Records = None,
    as_json: AsJson = False,
) -> None:
    """Bind a task to another backbone of its model while it is called: no request fails."""
    from fmplex_controller.sidecar.rebinding import rebind as rebind_task

    with errors_shown(as_json):
        with controlled(repository, server, control_key, control_key_file, records) as (triton, journal):
            why = f"{COMMAND}: {reason}" if reason else COMMAND
            moved = rebind_task(repository, triton, name, backbone, journal=journal, why=why)
        if moved is None:
            print_result(
                {"task": name, "backbone": backbone, "moved": False}, f"{name}: on {backbone} already", as_json
            )
            return
        words = f"{name}: from {moved.former} to {backbone}, VFM_{moved.tag}, after {moved.seconds * 1e3:.0f} ms"
        print_result(asdict(moved) | {"moved": True}, words, as_json)
