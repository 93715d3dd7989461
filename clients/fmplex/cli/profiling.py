"""`fmplex profile`: how long batches of a backbone take on this hardware."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from fmplex.cli.options import DEFAULT, SERVER_VARIABLE, AsJson, Repo, split
from fmplex.cli.shown import errors_shown, print_result
from fmplex.client.measuring import Measuring, Skipped, profile_of
from fmplex.client.sync import Client
from fmplex_backend.errors import ServerProblem, TaskProblem
from fmplex_backend.profiles import Point, Profile, file_of, write_profile
from fmplex_backend.repository.config import load_task_config
from fmplex_backend.repository.reader import RepositoryReader
from fmplex_backend.repository.tasks import TaskSpec

LENGTHS = "8,16,32,64,128,256"
USUAL = "localhost:8001"
TIMEOUT_S = 120.0


def profile(
    backbone: Annotated[str, typer.Argument(help="Name of the backbone.")],
    repository: Repo = DEFAULT,
    server: Annotated[
        str, typer.Option(envvar=SERVER_VARIABLE, help="The running server; see --start for one of its own.")
    ] = USUAL,
    start: Annotated[bool, typer.Option("--start", help="Start a server on the repository for it.")] = False,
    task: Annotated[
        str, typer.Option(help="Task to ask; default: one of the backbone's, without adapter if any.")
    ] = "",
    rows: Annotated[str, typer.Option(help="Rows of the batches; default: 1, 2, 4 ... to the largest.")] = "",
    tokens: Annotated[str, typer.Option(help="About so many tokens in each row.")] = LENGTHS,
    times: Annotated[int, typer.Option(min=1, max=1000, help="Measurements of each batch: the median counts.")] = 5,
    out: Annotated[Path | None, typer.Option(help="File to write; default: where backbones and planner look.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it into this file, .svg or .png; wants matplotlib.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how long batches of a backbone take, by rows and tokens, through the server; best while nobody else asks.

    A backbone starts its cost model from what was measured on its hardware when it is loaded the next time, and
    `fmplex plan` goes by it.
    """
    with errors_shown(as_json), _server(repository, server, start) as url, Client(url, timeout=TIMEOUT_S) as client:
        lengths = _numbers(tokens, "--tokens")
        status = client.status(backbone)
        asked = task or _task_of(repository, backbone, [each.name for each in status.tasks if each.healthy])
        sizes = _numbers(rows, "--rows") if rows else _sizes(status.max_batch or 32)
        points: list[Point] = []
        for each in Measuring(client, backbone, asked, times).points(sizes, lengths):
            _tell(each)
            if isinstance(each, Point):
                points.append(each)
        measured = profile_of(client.status(backbone), points)
        file = out or file_of(measured.model, measured.dtype, measured.hardware)
        _write(file, measured)
        if plot is not None:
            _draw(measured, plot)
        off = max(map(abs, measured.errors()))
        document = measured.model_dump(mode="json") | {"file": str(file), "most_off": off}
        words = f"{file}: {len(points)} batches on {measured.hardware}; the cost model is off by {off:.0%} at most"
        print_result(document, words, as_json)


def _tell(each: Point | Skipped) -> None:
    if isinstance(each, Skipped):
        print(f"{each.rows} rows of {each.length} tokens: left out: {each.why}", file=sys.stderr, flush=True)
        return
    what = f"{each.rows} rows of {each.tokens:.0f} tokens"
    print(f"{what}: {each.seconds * 1e3:.1f} ms ({each.times} times)", file=sys.stderr, flush=True)


@contextmanager
def _server(repository: Path, server: str, start: bool) -> Iterator[str]:
    """The URL of a running server; one that is started here ends with the block."""
    if not start:
        yield server
        return
    from fmplex_controller.server.options import ServerOptions
    from fmplex_controller.server.process import Server, free_ports

    http, grpc, metrics = free_ports(3)
    options = ServerOptions(repository, http_port=http, grpc_port=grpc, metrics_port=metrics)
    with Server(options) as own:
        own.wait_ready()
        yield own.grpc_url


def _task_of(repository: Path, backbone: str, healthy: list[str]) -> str:
    """One without an adapter, if there is one; the repository need not be there."""
    if not healthy:
        raise ServerProblem(f"no task on {backbone!r} answers, and batches are measured through one. Add a task first")
    try:
        entries = RepositoryReader(repository).tasks()
    except TaskProblem:
        return healthy[0]
    for name in healthy:
        _, entry = entries.get(name, ("", None))
        if isinstance(entry, TaskSpec) and load_task_config(entry.version.path / "task.json").adapter is None:
            return name
    return healthy[0]


def _sizes(most: int) -> list[int]:
    """Powers of two below a number, and that number."""
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]


def _numbers(text: str, option: str) -> list[int]:
    """Whole numbers above 0, comma-separated."""
    try:
        found = [int(each) for each in split(text)]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers above 0, such as 1,8,32", param_hint=option)
    return found


def _write(file: Path, measured: Profile) -> None:
    try:
        write_profile(file, measured)
    except OSError as error:
        raise TaskProblem(f"{file} cannot be written: {error.strerror}. Name another file with --out") from None


def _draw(measured: Profile, file: Path) -> None:
    from fmplex.cli.profile_plot import draw

    draw(measured, file)
