"""`fmplex openai`, and the options that it shares with `fmplex serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmplex.cli.options import SERVER, SERVER_VARIABLE
from fmplex.cli.shown import errors_shown

if TYPE_CHECKING:
    from fmplex_controller.openai.options import OpenAiOptions
    from fmplex_controller.openai.process import OpenAiProcess
    from fmplex_controller.server.process import Server

KEYS_HELP = "File with the API keys that may ask, one a line; without it everyone who reaches the port may."
HOST_HELP = "Address that OpenAI's API listens on; 0.0.0.0 for all."
ServePort = Annotated[
    int | None, typer.Option("--openai-port", min=1, max=65535, help="Also serve OpenAI's API, on this port.")
]
ServeHost = Annotated[str, typer.Option("--openai-host", help=HOST_HELP)]
ServeKeys = Annotated[Path | None, typer.Option("--openai-keys", help=KEYS_HELP, dir_okay=False)]


def beside(server: Server, port: int | None, host: str, keys: Path | None) -> list[OpenAiProcess]:
    """The API of a server that this process is to start, where it was asked for; raises SetupProblem."""
    from fmplex_backend.errors import SetupProblem
    from fmplex_controller.openai.options import OpenAiOptions
    from fmplex_controller.openai.process import OpenAiProcess

    if port is None:
        if keys is not None or host != "127.0.0.1":
            raise SetupProblem("--openai-host and --openai-keys need --openai-port. Give it, e.g. 9000")
        return []
    if port in server.options.ports.values():
        raise SetupProblem(f"--openai-port {port} is one of Triton's own. Choose another")
    options = OpenAiOptions(port, host, keys)
    options.check()
    return [OpenAiProcess(server, options)]


def tell_ready(apis: list[OpenAiProcess]) -> None:
    """Wait until they listen, and say where."""
    for each in apis:
        if each.wait_ready():
            _tell(each.api)


def _tell(options: OpenAiOptions) -> None:
    who = "everyone who reaches it may ask" if options.keys is None else f"with the keys in {options.keys}"
    print(f"fmplex: OpenAI's API at {options.url}, {who}", file=sys.stderr, flush=True)


def openai(
    url: Annotated[
        str, typer.Option("--url", "--server", envvar=SERVER_VARIABLE, help="The Triton server's gRPC address.")
    ] = SERVER,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 9000,
    host: Annotated[str, typer.Option(help=HOST_HELP)] = "127.0.0.1",
    keys: Annotated[Path | None, typer.Option(help=KEYS_HELP, dir_okay=False)] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for a request, its whole answer included.")] = 600.0,
    body_mib: Annotated[float, typer.Option(min=0.001, help="MiB of a request, at most.")] = 4.0,
) -> None:
    """Serve OpenAI's API for the tasks of a Triton server that runs elsewhere, until SIGTERM or Ctrl-C.

    /v1/models lists the tasks with the server's control key, which FMPLEX_CONTROL_KEY gives where the server is not
    this user's on this host.
    """
    from fmplex_controller.openai.__main__ import run
    from fmplex_controller.openai.options import OpenAiOptions

    with errors_shown():
        options = OpenAiOptions(port, host, keys, timeout, body_mib)
        run(url, options, lambda: _tell(options))
