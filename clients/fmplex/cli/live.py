"""How a repository's tasks are on a running server, asked over the way that requests take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fmplex.cli.options import SERVER
from fmplex.client.status import as_served, by_name
from fmplex.client.sync import Client
from fmplex_backend.errors import DeadlineExceeded, ServerProblem, Unreachable
from fmplex_backend.status import BackboneStatus, TaskStatus

TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Live:
    """What a server tells of the backbones of a repository; `missing` are those that it does not tell of, and why."""

    server: str
    backbones: Mapping[str, BackboneStatus]
    missing: Mapping[str, str]
    tasks: Mapping[str, TaskStatus]

    def share(self, task: TaskStatus) -> float | None:
        """A task's part of the time that its backbone spent on tasks; None where that is nothing."""
        status = self.backbones.get(task.backbone)
        total = sum(each.with_canary.service_s for each in status.tasks) if status else 0.0
        return task.with_canary.service_s / total if total else None


def read(server: str, tasks: Mapping[str, str], backbones: tuple[str, ...] = ()) -> Live | None:
    """How these tasks, by the names of their backbones, are on a server; raises ServerProblem.

    Without a server it is the one at the usual address, and None where there is none, or another repository's.
    """
    if server:
        return _ask(server, tasks, backbones)
    try:
        found = _ask(SERVER, tasks, backbones)
    except ServerProblem:
        return None
    return found if found.backbones else None


def _ask(server: str, tasks: Mapping[str, str], backbones: tuple[str, ...]) -> Live:
    told: dict[str, BackboneStatus] = {}
    missing: dict[str, str] = {}
    with Client(server, timeout=TIMEOUT_S, retries=0) as client:
        for backbone in sorted({*tasks.values(), *backbones}):
            status = _status(client, backbone)
            if isinstance(status, str):
                missing[backbone] = status
            else:
                told[backbone] = status
        known = by_name(task for status in told.values() for task in status.tasks)
        served = {
            name: as_served(
                name, known.get(name), backbone in told and client.ready(name), missing.get(backbone, "")
            ).model_copy(update={"backbone": backbone})
            for name, backbone in tasks.items()
        }
    return Live(server, told, missing, served)


def _status(client: Client, backbone: str) -> BackboneStatus | str:
    """What a backbone tells, or why it does not."""
    if not client.ready(backbone):
        return f"the server at {client.url} does not serve its backbone {backbone!r}: load it, or see the server's log"
    try:
        return client.status(backbone)
    except (Unreachable, DeadlineExceeded):
        raise
    except ServerProblem as error:
        return f"its backbone {backbone!r} does not answer: {error}"
