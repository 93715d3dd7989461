"""The control key on the command line: what `fmplex serve` is given, and `fmplex control-key`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmplex.cli.options import SERVER, Asked
from fmplex.cli.shown import errors_shown
from fmplex_backend.control_key import VARIABLE, check_key, read_key
from fmplex_backend.errors import SetupProblem

if TYPE_CHECKING:
    from fmplex_controller.server.process import Server

Given = Annotated[
    str | None,
    typer.Option(
        "--control-key", envvar=VARIABLE, show_envvar=True, help="Key that clients must send to control models."
    ),
]
GivenFile = Annotated[
    Path | None,
    typer.Option(
        "--control-key-file", envvar=f"{VARIABLE}_FILE", show_envvar=True, help="File with that key.", dir_okay=False
    ),
]
Open = Annotated[bool, typer.Option("--open", help="No key: everyone who reaches the ports controls the server.")]
SharedMemory = Annotated[
    bool, typer.Option("--shared-memory", help="Let clients register shared memory without the key.")
]


def chosen(key: str | None, file: Path | None, everyone: bool) -> str:
    """The key that was given, "" where none was; raises SetupProblem for a bad one, and for two answers."""
    every = {f"--control-key ({VARIABLE})": key, "--control-key-file": file, "--open": everyone or None}
    given = [name for name, value in every.items() if value is not None]
    if len(given) > 1:
        raise SetupProblem(f"{' and '.join(given)} exclude each other. Give one of them")
    if file is not None:
        return read_key(file)
    return "" if key is None else check_key(key, "--control-key")


def told(server: Server) -> str:
    """A line on who may control the server."""
    if server.options.open:
        return "open: everyone who reaches the ports may load models, and run code with them"
    if not server.control_key.files:
        return "model control needs the key that was given"
    return f"model control needs the key in {server.control_key.files[-1]}"


def control_key(
    server: Asked = SERVER,
) -> None:
    """Print the control key of a server that you have started on this host, for clients that do not find it."""
    with errors_shown():
        from fmplex.client.control import kept_for
        from fmplex.client.wire import Address

        key = kept_for(Address.of(server))
        if not key:
            raise SetupProblem(
                f"no key of {server} is kept on this host for this user: the server was given its key, is open, was "
                "started by somebody else, or is not running. Ask who started it, and give the key as "
                "FMPLEX_CONTROL_KEY"
            )
        print(key)
