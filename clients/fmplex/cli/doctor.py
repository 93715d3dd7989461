"""`fmplex doctor`: what would keep a server from running here, and how to mend it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fmplex.cli.options import DEFAULT, AsJson, Repo
from fmplex.cli.shown import PROBLEM, errors_shown
from fmplex_controller.server.health import Finding
from fmplex_controller.server.options import ServerOptions


def doctor(
    repository: Repo = DEFAULT,
    host: Annotated[str, typer.Option(help="Address that the server is to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=1, max=65535, help="Port for HTTP.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535, help="Port for gRPC.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535, help="Port for /metrics.")] = 8002,
    as_json: AsJson = False,
) -> None:
    """Check this machine, its packages and a repository for a server; the exit status is 1 where one could not run."""
    found: list[Finding] = []
    with errors_shown(as_json):
        for finding in _findings(repository, ServerOptions(repository, host, http_port, grpc_port, metrics_port)):
            found.append(finding)
            if not as_json:
                print(f"{finding.status:4}  {finding.check}: {finding.text}", flush=True)
    if as_json:
        print(json.dumps([asdict(each) for each in found], ensure_ascii=False))
    if any(each.status == "bad" for each in found):
        raise typer.Exit(PROBLEM)


def _findings(repository: Path, options: ServerOptions) -> Iterator[Finding]:
    from fmplex.cli import checkup
    from fmplex_controller.server import health

    yield checkup.python()
    yield from health.findings(options)
    yield checkup.control_key(options.grpc_port)
    yield from checkup.packages()
    yield checkup.gpu()
    yield from checkup.dtype()
    yield from checkup.repository(repository)
