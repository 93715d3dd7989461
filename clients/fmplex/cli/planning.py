"""`fmplex plan`: which backbone each task should be on, and why."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmplex.cli import columns, keys
from fmplex.cli.controlling import controlled
from fmplex.cli.events import Records
from fmplex.cli.options import DEFAULT, SERVER, AsJson, Asked, Repo
from fmplex.cli.shown import errors_shown
from fmplex_backend.errors import ServerProblem
from fmplex_backend.repository.reader import RepositoryReader

if TYPE_CHECKING:
    from fmplex_controller.planner.situation import Plan
    from fmplex_controller.sidecar.demand import Demands
    from fmplex_controller.sidecar.planning import Known
    from fmplex_controller.sidecar.triton import Triton

COLUMNS = ("task", "from", "to", "why")


def plan(
    repository: Repo = DEFAULT,
    server: Asked = SERVER,
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="For so long the demand is measured.")] = 5.0,
    memory: Annotated[
        float | None, typer.Option(min=0, help="GiB that the server has for backbones; default: its main memory.")
    ] = None,
    parallel: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Backbones that run side by side at full speed; default: cores by threads, or 1.",
        ),
    ] = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Backbones may be started.")] = True,
    stop: Annotated[bool, typer.Option("--stop/--no-stop", help="Backbones may be stopped.")] = True,
    apply: Annotated[bool, typer.Option("--apply", help="Do it.")] = False,
    control_key: keys.Given = None,
    control_key_file: keys.GivenFile = None,
    records: Records = None,
    as_json: AsJson = False,
) -> None:
    """Show which tasks should change backbones, which backbones should start or stop, and why; --apply does it."""
    from fmplex_controller.planner.max_share import max_share
    from fmplex_controller.sidecar import planning
    from fmplex_controller.sidecar.plan_execution import carry_out

    with (
        errors_shown(as_json),
        controlled(repository, server, control_key, control_key_file, records) as (triton, journal),
    ):
        known, demands = _measured(repository, triton, seconds)
        limits = planning.Limits.given(memory, parallel)
        found = max_share(
            planning.situation(known, demands, limits), split=False, start=start, stop=stop, pinned=known.grouped
        )
        if as_json:
            rates = {task: asdict(demand) for (task, _), demand in sorted(demands.all.items())}
            print(json.dumps(_document(found) | {"demand": rates}, ensure_ascii=False))
        else:
            _show(found)
        if apply:
            for done in carry_out(repository, triton, found, known.templates, journal):
                print(f"done: {done}", flush=True)


def _measured(repository: Path, triton: Triton, seconds: float) -> tuple[Known, Demands]:
    from fmplex_controller.sidecar import planning
    from fmplex_controller.sidecar.demand import Demands

    names, demands = RepositoryReader(repository).backbones(), Demands()
    for turn in range(2):
        if turn:
            time.sleep(seconds)
        statuses = []
        for name in names:
            try:
                status = triton.status(name)
            except ServerProblem as error:
                if len(names) == 1 or "not healthy" in str(error):
                    raise
                continue  # it is not loaded
            demands.observe(status, time.monotonic())
            statuses.append(status)
    if not statuses:
        raise ServerProblem(f"{triton.url} serves none of the backbones in {repository}. Load one of them first")
    return planning.read(repository, statuses), demands


def _show(found: Plan) -> None:
    used = ", ".join(f"{name} {part:.2f}" for name, part in found.used.items())
    print(f"of each backbone's capacity is used: {used}")
    for change in found.starts:
        print(f"start {change.backbone.name}: {change.reason}")
    rows = [
        {"task": move.task, "from": " ".join(move.before) or "-", "to": " ".join(move.after) or "-", "why": move.reason}
        for move in found.moves
    ]
    if rows:
        columns.show(rows, COLUMNS, [])
    for change in found.stops:
        print(f"stop {change.backbone.name}: {change.reason}")
    for remark in (*(f"{task}: {why}" for task, why in found.unplaced.items()), *found.remarks):
        print(f"note: {remark}")
    if found.changes_nothing:
        print("nothing to do")


def _document(found: Plan) -> dict[str, Any]:
    return {
        "used": dict(found.used),
        "bindings": [asdict(each) for each in found.bindings],
        "starts": [{"backbone": each.backbone.name, "reason": each.reason} for each in found.starts],
        "stops": [{"backbone": each.backbone.name, "reason": each.reason} for each in found.stops],
        "moves": [asdict(each) for each in found.moves],
        "unplaced": dict(found.unplaced),
        "remarks": list(found.remarks),
    }
