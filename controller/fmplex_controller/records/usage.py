"""What the ledger says: the seconds of its backbone that each task was charged, and those that it was busy."""

from __future__ import annotations

import csv
import io
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from pydantic import BaseModel

from fmplex_backend.errors import SetupProblem
from fmplex_backend.spreadsheet import text_cell
from fmplex_controller.records.ledger import FILE

COLUMNS = ("backbone", "task", "seconds", "preparation_s", "requests", "items")


class TaskUsage(BaseModel):
    """What a task was charged on one backbone."""

    backbone: str
    task: str
    seconds: float  # of the backbone's time: padding, adapters and its part of shared rows included
    preparation_s: float  # of preparing its requests, beside that
    requests: int
    items: int


class BackboneUsage(BaseModel):
    """A backbone: `busy_s` is its own count of the seconds that passes ran, `charged_s` the sum over its tasks."""

    backbone: str
    busy_s: float
    charged_s: float


class Usage(BaseModel):
    """All of it, from `since` (seconds since 1970, the beginning of a minute; None: from the first record) on."""

    since: float | None
    tasks: Sequence[TaskUsage]
    backbones: Sequence[BackboneUsage]


def read_usage(folder: Path, since: float | None = None) -> Usage:
    """Sum up what has been recorded, by minutes, of times over two days ago by hours; raises SetupProblem."""
    file = folder / FILE
    if not file.exists():
        raise SetupProblem(f"{file}: no usage has been recorded there. Is a controller running beside the server?")
    start = None if since is None else since // 60 * 60
    where, values = ("", ()) if start is None else ("WHERE start + seconds > ?", (start,))
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=10.0)) as connection:
            connection.execute("BEGIN")  # one state of both tables
            tasks = connection.execute(
                "SELECT backbone, task, SUM(service_s), SUM(preparation_s), SUM(requests), SUM(items) "
                f"FROM usage {where} GROUP BY backbone, task ORDER BY backbone, 3 DESC, task",
                values,
            ).fetchall()
            busy = connection.execute(
                f"SELECT backbone, SUM(busy_s) FROM busy {where} GROUP BY backbone ORDER BY backbone", values
            ).fetchall()
    except sqlite3.Error as error:
        raise SetupProblem(f"{file}: usage cannot be read: {error}. Is it of this host?") from None
    rows = [TaskUsage(**dict(zip(COLUMNS, row, strict=True))) for row in tasks]
    charged: dict[str, float] = defaultdict(float)
    for row in rows:
        charged[row.backbone] += row.seconds
    return Usage(
        since=start,
        tasks=rows,
        backbones=[BackboneUsage(backbone=name, busy_s=seconds, charged_s=charged[name]) for name, seconds in busy],
    )


def as_csv(usage: Usage) -> str:
    """A line for each task, with a header.

    Directories may have any name, and so may tasks, also one that a spreadsheet would compute.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in usage.tasks:
        writer.writerow([_cell(value) for value in row.model_dump().values()])
    return out.getvalue()


def _cell(value: str | float) -> str | float:
    if isinstance(value, str):
        return text_cell(value)
    return f"{value:.6f}" if isinstance(value, float) else value
