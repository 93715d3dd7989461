"""The option `--since`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from fmplex_controller.records import since

Since = Annotated[
    str, typer.Option(help="From then on: so long ago (30s, 15m, 1h, 7d, 2w), or a date (2026-01-31T08:00).")
]


def time_of(text: str) -> datetime | None:
    """The time that the option names, None for ""."""
    try:
        return since.time_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from None
