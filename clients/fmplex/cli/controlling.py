"""`fmplex controller`, the options that it shares with `fmplex serve`, and commands that change what it controls."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmplex.cli import keys
from fmplex.cli.events import Records
from fmplex.cli.options import SERVER, Asked
from fmplex.cli.shown import errors_shown
from fmplex_backend.control_key import read_key

if TYPE_CHECKING:
    from fmplex_controller.api.options import ApiOptions
    from fmplex_controller.records.journal import Journal
    from fmplex_controller.server.process import Server
    from fmplex_controller.sidecar.adaptation import ElasticOptions
    from fmplex_controller.sidecar.process import SidecarProcess
    from fmplex_controller.sidecar.triton import Triton

TOKEN = "FMPLEX_API_TOKEN"

Api = Annotated[
    bool, typer.Option("--api/--no-api", help="Serve the controller's HTTP API, with a page that shows the server.")
]
ApiHost = Annotated[str, typer.Option(help="Address that the API listens on; all but loopback want a token.")]
ApiPort = Annotated[
    int | None,
    typer.Option(
        min=1, max=65535, help="Port of the API; default: 8003, and no API where that is taken.", show_default=False
    ),
]
ApiTokenFile = Annotated[
    Path | None,
    typer.Option(
        envvar=f"{TOKEN}_FILE", show_envvar=True, help="File with the token that the API wants.", dir_okay=False
    ),
]

Elastic = Annotated[
    bool,
    typer.Option(
        "--elastic/--no-elastic",
        help="Let the controller rebind tasks of overloaded backbones, and start and remove backbones.",
    ),
]
ElasticStart = Annotated[
    bool, typer.Option("--elastic-start/--no-elastic-start", help="With --elastic: backbones may be started.")
]
ElasticMoves = Annotated[
    int | None,
    typer.Option(min=1, help="With --elastic: the most rebinds in a minute; default: 30.", show_default=False),
]
ElasticIdle = Annotated[
    float | None,
    typer.Option(
        min=1,
        help="With --elastic: seconds without need after which a started backbone is removed; default: 300.",
        show_default=False,
    ),
]
ElasticMemory = Annotated[
    float | None,
    typer.Option(min=0, help="With --elastic: GiB that the server has for backbones; default: its main memory."),
]
ElasticParallel = Annotated[
    float | None,
    typer.Option(
        min=1,
        help="With --elastic: backbones that run side by side at full speed; default: cores by threads, or 1.",
    ),
]


def elastic_options(
    wanted: bool,
    start: bool,
    moves: int | None,
    idle_s: float | None,
    memory: float | None,
    parallel: float | None,
) -> ElasticOptions | None:
    """What was asked for, None where elasticity was not."""
    from fmplex_controller.sidecar.adaptation import ElasticOptions
    from fmplex_controller.sidecar.elastic import Settings
    from fmplex_controller.sidecar.planning import Limits

    if not wanted:
        return None
    given = {"moves_per_minute": moves, "idle_s": idle_s, "start": start}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return ElasticOptions(Settings(**settings), Limits.given(memory, parallel))


def api_options(wanted: bool, host: str, port: int | None, token_file: Path | None) -> ApiOptions | None:
    """What was asked for, None for no API; raises SetupProblem."""
    from fmplex_controller.api.options import ApiOptions

    if not wanted:
        return None
    token = read_key(token_file) if token_file else os.environ.get(TOKEN, "")
    return ApiOptions.of(host, port, token, lambda text: print(f"fmplex: {text}", file=sys.stderr, flush=True))


def companion(
    server: Server, api: ApiOptions | None, records: Path | None, elastic: ElasticOptions | None
) -> SidecarProcess:
    """The controller of a server that this process is to start."""
    from fmplex_controller.records.folder import records_folder
    from fmplex_controller.records.journal import Journal
    from fmplex_controller.sidecar.process import SidecarProcess

    folder = records_folder(server.options.repository, server.grpc_url, records)
    journal = Journal.of_server(folder, server.options.repository, server.grpc_url)
    options = [
        "--records",
        str(folder.resolve()),
        *(api.arguments if api else ()),
        *(elastic.arguments if elastic else ()),
    ]
    return SidecarProcess(server, journal=journal, options=options, variables=api.variables if api else {})


@contextlib.contextmanager
def controlled(
    repository: Path, server: str, key: str | None, key_file: Path | None, records: Path | None
) -> Iterator[tuple[Triton, Journal]]:
    """A server for a command that changes it, and where it records what it does; raises SetupProblem."""
    from fmplex_controller.records.folder import records_folder
    from fmplex_controller.records.journal import Journal
    from fmplex_controller.sidecar.triton import Triton

    triton = Triton(server, keys.chosen(key, key_file, False) or None)
    try:
        yield triton, Journal.of_command(records_folder(repository, server, records), repository, server)
    finally:
        triton.close()


def controller(
    repository: Annotated[
        Path, typer.Option("--repository", "-r", help="Model repository that the server runs on.", file_okay=False)
    ] = Path("model_repository"),
    server: Asked = SERVER,
    control_key: keys.Given = None,
    control_key_file: keys.GivenFile = None,
    records: Records = None,
    api: Api = True,
    api_host: ApiHost = "127.0.0.1",
    api_port: ApiPort = None,
    api_token_file: ApiTokenFile = None,
    elastic: Elastic = False,
    elastic_start: ElasticStart = True,
    elastic_moves: ElasticMoves = None,
    elastic_idle: ElasticIdle = None,
    elastic_memory: ElasticMemory = None,
    elastic_parallel: ElasticParallel = None,
) -> None:
    """Control a Triton server that runs elsewhere, until SIGTERM or Ctrl-C; `fmplex serve` has one of its own.

    What the repository holds is loaded, completed or quarantined, what is removed unloaded, what dies loaded again.
    """
    from fmplex_controller.sidecar.__main__ import run

    with errors_shown():
        key = keys.chosen(control_key, control_key_file, False) or None
        may = elastic_options(elastic, elastic_start, elastic_moves, elastic_idle, elastic_memory, elastic_parallel)
        run(repository, server, key, records, api_options(api, api_host, api_port, api_token_file), may)
