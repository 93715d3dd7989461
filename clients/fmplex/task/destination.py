"""Where a task is to be saved and served, checked before anything is trained for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fmplex.client.sync import Client
from fmplex_backend.errors import ControlClosed, DeadlineExceeded, ServerProblem, TaskProblem, Unreachable
from fmplex_backend.repository.configs import Terms
from fmplex_backend.repository.tags import NONE_TOLD
from fmplex_backend.repository.writer import ModelRepository
from fmplex_backend.status import TaskStatus

TIMEOUT_S = 15.0
HOLDERS_S = 5.0  # for what matters only where entries of several tasks have one tag


def check_destination(
    name: str,
    backbone: str,
    repository: str | Path,
    terms: Terms,
    server: str = "",
    *,
    new_version: bool = True,
    held: bool = False,
    control_key: str | None = None,
) -> None:
    """Raise now what saving the task, and loading it on a server, would raise later.

    That is TaskProblem where the repository does not take it, ControlClosed where the server's control key is not
    ours, and another ServerProblem where the server is away.

    Args:
        server: an address; "" where the task is only to be saved.
        new_version: whether a task of that name may be there already.
        held: whether it must be, since the version that serves goes on.
    """
    models = ModelRepository(repository)
    models.check_place(name, backbone, terms, held=held, holders=tag_holders(server, backbone, control_key))
    if not new_version and name in models.tasks():
        raise TaskProblem(
            f"the task {name!r} is in {repository} already. Give --new-version to save this one as its next version, "
            "or another name"
        )
    if held and not (new_version and name in models.tasks()):
        raise TaskProblem(
            f"no version of {name!r} serves that could go on meanwhile. --hold goes with --new-version, for a task "
            f"that is in {repository}"
        )
    if server:
        _check_server(server, backbone, repository, control_key)


def tag_holders(server: str, backbone: str, control_key: str | None = None) -> Mapping[int, str]:
    """By tag, the tasks and groups that a backbone answers for; none where there is no server, or it does not tell."""
    if not server:
        return NONE_TOLD
    try:
        with Client(server, timeout=HOLDERS_S, retries=0, control_key=control_key) as client:
            return client.status(backbone).tag_holders
    except ServerProblem:
        return NONE_TOLD


def _check_server(server: str, backbone: str, repository: str | Path, control_key: str | None) -> None:
    """Raise ServerProblem where it is away or refuses model control, TaskProblem where it runs on other models."""
    with Client(server, timeout=TIMEOUT_S, retries=1, control_key=control_key) as client:
        tasks = _tasks(client)
        is_there = client.ready(backbone)
    if not is_there:
        known = sorted({task.backbone for task in tasks.values() if task.backbone})
        raise TaskProblem(
            f"the server {server} has no backbone {backbone!r}, but {', '.join(known) or 'no tasks'}: it runs on "
            f"another repository than {repository}. Name that one, or another server"
        )


def _tasks(client: Client) -> dict[str, TaskStatus]:
    """All tasks, for which the server wants its control key as loading does; none where Triton cannot list them."""
    try:
        return client.tasks()
    except (ControlClosed, Unreachable, DeadlineExceeded):
        raise
    except ServerProblem:
        return {}  # a link that leads nowhere, anywhere in the repository, is no reason not to save a task
