"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmplex_backend.types import LEAST_WEIGHT, MOST_WEIGHT

DEFAULT = Path("model_repository")
SERVER = "localhost:8001"
SERVER_VARIABLE = "FMPLEX_SERVER"

Name = Annotated[str, typer.Argument(help="Name of the task.")]
Repo = Annotated[Path, typer.Option("--repository", "-r", help="Model repository.", file_okay=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Server = Annotated[str, typer.Option(help="Also apply it on this running server, e.g. localhost:8001.")]
Live = Annotated[
    str,
    typer.Option(
        "--server",
        envvar=SERVER_VARIABLE,
        help=f"The running server whose state is shown too; default: one at {SERVER}, if there is one.",
        show_default=False,
    ),
]
Asked = Annotated[
    str, typer.Option("--server", envvar=SERVER_VARIABLE, help="The server: for gRPC, or e.g. http://localhost:8000.")
]
Weight = Annotated[
    float | None,
    typer.Option(help=f"Weight of its fair share of the backbone, from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}."),
]
SloMs = Annotated[float | None, typer.Option("--slo-ms", help="Latency objective, in milliseconds.")]
NewVersion = Annotated[
    bool, typer.Option("--new-version", help="Save as the next version of a task that is there already.")
]
Hold = Annotated[
    bool,
    typer.Option("--hold", help="With --new-version: the version that serves goes on, until this one is promoted."),
]
MaxQueue = Annotated[int | None, typer.Option(help="Number of requests that may wait; default: the backbone's.")]
MaxQueueBytes = Annotated[
    int | None, typer.Option(help="Bytes that requests may take until they are answered; default: the backbone's.")
]
MaxSeconds = Annotated[
    float | None, typer.Option(help="Seconds from a request's arrival to its end; default: the backbone's.")
]
Labels = Annotated[
    str, typer.Option(help="Labels in the decoder's order, comma-separated; default: those of the data.")
]


def split(names: str) -> list[str]:
    """The names that an option gives, comma-separated."""
    return [name.strip() for name in names.split(",") if name.strip()]
