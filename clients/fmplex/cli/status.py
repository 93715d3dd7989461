"""`fmplex status`: a server at a glance, once or live."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live as LiveDisplay
from rich.table import Table
from rich.text import Text

from fmplex.cli import live
from fmplex.cli.columns import as_fields
from fmplex.cli.events import Records, line_of
from fmplex.cli.options import DEFAULT, SERVER, AsJson, Asked, Repo
from fmplex.cli.shown import errors_shown
from fmplex.client.overview import BackboneRow, History, TaskRow
from fmplex.client.versions import VersionRow, rows_of
from fmplex_backend.errors import ServerProblem, SetupProblem
from fmplex_backend.repository.writer import ModelRepository

PERIOD_S = 2.0  # between looks
FIRST_S = 1.0  # from the first look to the second, which rates are worked out from
LAST_EVENTS = 8
BACKBONE_COLUMNS = {
    "backbone": "backbone",
    "state": "state",
    "tasks": "tasks",
    "queue": "queued",
    "busy": "busy",
    "requests/s": "requests_per_s",
    "rows/batch": "batch_items",
    "up": "up_s",
}
TASK_COLUMNS = {
    "task": "task",
    "backbone": "backbone",
    "state": "state",
    "weight": "weight",
    "share": "share",
    "requests/s": "requests_per_s",
    "queue": "queued",
    "wait_ms": "wait_ms",
    "slo_ms": "slo_ms",
    "misses": "misses",
    "failures": "failures",
}
ADAPTER_COLUMN = {"adapter in memory": "adapter_in_memory"}  # where a backbone has `adapter_memory`
VERSION_COLUMNS = {
    "task": "task",
    "version": "version",
    "role": "role",
    "share": "share",
    "requests": "requests",
    "wait_ms": "wait_ms",
    "run_ms": "run_ms",
    "failures": "failures",
    "agreement": "agreement",
}
Row = BackboneRow | TaskRow | VersionRow


@dataclass(frozen=True, slots=True)
class Glance:
    """A server at one moment."""

    server: str
    backbones: Sequence[BackboneRow]
    tasks: Sequence[TaskRow]
    versions: Sequence[VersionRow]  # of tasks that try one beside the one that serves
    events: Sequence[Any]
    unrecorded: str = ""  # why there are no events

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        rows = {name: [row.model_dump(mode="json") for row in getattr(self, name)] for name in PARTS}
        return {"server": self.server, **rows}


PARTS = ("backbones", "tasks", "versions", "events")


class Looker:
    """Looks at the backbones of a repository on a server again and again."""

    def __init__(self, repository: Path, server: str, records: Path | None) -> None:
        self._models, self._server, self._records = ModelRepository(repository), server, records
        self._history = History()

    def look(self) -> Glance:
        """What they tell now; raises ServerProblem where there is no server."""
        bound = {name: backbone for name, (backbone, _) in self._models.tasks().items()}
        now = live.read(self._server, bound, tuple(self._models.backbones()))
        assert now is not None  # a server is named
        at = time.monotonic()
        for status in now.backbones.values():
            self._history.add(status, at)
        known = dict.fromkeys(now.backbones, "serving") | dict.fromkeys(now.missing, "not served")
        backbones = [
            self._history.backbone(name, state, now.missing.get(name, "")) for name, state in sorted(known.items())
        ]
        tasks = [self._history.task(now.tasks[name]) for name in sorted(now.tasks)]
        versions = rows_of(now.tasks[name] for name in sorted(now.tasks))
        events, problem = self._events()
        return Glance(self._server, backbones, tasks, versions, events, problem)

    def _events(self) -> tuple[Sequence[Any], str]:
        from fmplex_controller.records.events import latest_events
        from fmplex_controller.records.folder import existing_folder

        try:
            folder = existing_folder(self._models.root, self._server, self._records)
        except SetupProblem as problem:
            return (), str(problem)
        return latest_events(folder, LAST_EVENTS), ""


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it live, until Ctrl-C.")] = False,
    repository: Repo = DEFAULT,
    server: Asked = SERVER,
    records: Records = None,
    as_json: AsJson = False,
) -> None:
    """Show a server's backbones and tasks: shares, queues, missed objectives, and what its controller did last.

    Shares and rates are those of the last second; with --watch, of the last ten.
    """
    with errors_shown(as_json):
        looker = Looker(repository, server, records)
        looker.look()
        time.sleep(FIRST_S)
        if watch:
            _watch(looker, as_json)
        glance = looker.look()
        if as_json:
            print(json.dumps(glance.as_json(), ensure_ascii=False))
            return
        console = Console()
        if console.is_terminal:
            console.print(rendered(glance))
        else:
            print(in_pipe(glance))


def _watch(looker: Looker, as_json: bool) -> None:
    """Until Ctrl-C."""
    if as_json:
        while True:
            print(json.dumps(looker.look().as_json(), ensure_ascii=False), flush=True)
            time.sleep(PERIOD_S)
    with LiveDisplay(rendered(looker.look()), auto_refresh=False, screen=True) as display:
        while True:
            time.sleep(PERIOD_S)
            try:
                shown = rendered(looker.look())
            except ServerProblem as problem:  # it may be about to come back
                shown = Text(f"fmplex: {problem}", style="red")
            display.update(shown, refresh=True)


def rendered(glance: Glance) -> RenderableType:
    """Tables for a terminal."""
    tables = [_table(rows, columns) for rows, columns in _tables(glance)]
    parts: list[RenderableType] = [Text(f"{glance.server}", style="bold"), *tables]
    rows: list[Row] = [*glance.backbones, *glance.tasks, *glance.versions]
    parts += [Text(f"{_name(row)}: {row.error}", style="red") for row in rows if row.error]
    parts += [Text(line_of(event)) for event in glance.events] or [Text(glance.unrecorded, style="dim")]
    return Group(*parts)


def in_pipe(glance: Glance) -> str:
    """Tables with tabs, an empty line between them."""
    tables = [as_fields([_cells(row, columns) for row in rows], list(columns)) for rows, columns in _tables(glance)]
    events = "\n".join(line_of(event) for event in glance.events) or glance.unrecorded
    return "\n\n".join([*tables, events])


def _tables(glance: Glance) -> list[tuple[Sequence[Row], dict[str, str]]]:
    tables: list[tuple[Sequence[Row], dict[str, str]]] = [
        (glance.backbones, BACKBONE_COLUMNS),
        (glance.tasks, TASK_COLUMNS | (ADAPTER_COLUMN if any(map(_is_paged, glance.tasks)) else {})),
    ]
    return [*tables, (glance.versions, VERSION_COLUMNS)] if glance.versions else tables


def _is_paged(row: TaskRow) -> bool:
    return row.adapter_in_memory is not None


def _table(rows: Sequence[Row], columns: dict[str, str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in columns:
        is_text = title in ("backbone", "task", "state", "role")
        table.add_column(title, justify="left" if is_text else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(text) for text in _cells(row, columns).values()))  # Text: names are no markup
    return table


def _cells(row: Row, columns: dict[str, str]) -> dict[str, str]:
    return {title: _cell(title, getattr(row, field)) for title, field in columns.items()}


def _cell(title: str, value: Any) -> str:
    if value is None:
        return "-"
    if title in ("share", "busy", "agreement"):
        return f"{value:.1%}"
    if title == "up":
        return f"{value / 3600:.0f}h" if value >= 3600 else f"{value:.0f}s"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _name(row: Row) -> str:
    """With its state."""
    if isinstance(row, VersionRow):
        return f"{row.task}: version {row.version} as a {row.role} is refused"
    return f"{row.task if isinstance(row, TaskRow) else row.backbone}: {row.state}"
