"""How a server's tasks are: what its backbones tell of them, and what the server itself does.

Pure functions: the calls are `base.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.grpc import service_pb2

from fmplex.client.streams import stream_request
from fmplex.client.wire import Array
from fmplex_backend.errors import ServerProblem
from fmplex_backend.interface import PREFETCH, STATUS, TASK, backbone_asked
from fmplex_backend.status import BackboneStatus, TaskStatus

NOT_LOADED = "the server has not loaded it, or could not: load it, or see the server's log"


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the repository as the server sees it."""

    ready: bool
    reason: str


def models_in(index: Iterable[Mapping[str, str]]) -> dict[str, Model]:
    """The models of Triton's repository index, by name.

    One is ready where any of its versions is: the index keeps the versions that were unloaded, as UNAVAILABLE.
    """
    found: dict[str, Model] = {}
    for version in index:
        name, ready = version["name"], version.get("state") == "READY"
        if ready or name not in found:
            found[name] = Model(ready, "" if ready else version.get("reason", ""))
    return found


def backbone_of(config: Mapping[str, Any]) -> str:
    """The backbone that a task's configuration steps into, a backbone's own name, or "" for another model."""
    if config.get("backend") == "fmplex":
        return str(config["name"])
    steps = config.get("ensemble_scheduling", {}).get("step", ())
    return backbone_asked((step["model_name"], step.get("output_map", ())) for step in steps)


def status_request(backbone: str, task: str, *, prefetch: bool = False) -> service_pb2.ModelInferRequest:
    """For gRPC's stream, which requests to backbones of a family that answers in parts want."""
    return stream_request(backbone, TASK.name, _cell(task), (STATUS.name,), _parameters(prefetch))


def status_arguments(http: bool, backbone: str, task: str, *, prefetch: bool = False) -> dict[str, Any]:
    """The arguments of tritonclient's `infer`."""
    module = httpclient if http else grpcclient
    tensor = module.InferInput(TASK.name, [1, 1], "BYTES")
    tensor.set_data_from_numpy(_cell(task))
    return {
        "model_name": backbone,
        "inputs": [tensor],
        "outputs": [module.InferRequestedOutput(STATUS.name)],
        "parameters": _parameters(prefetch),
    }


def _parameters(prefetch: bool) -> dict[str, str]:
    return {PREFETCH: "true"} if prefetch else {}


def _cell(task: str) -> Array:
    return np.array([[task.encode()]], dtype=np.object_)


def status_in(answer: Any) -> BackboneStatus:
    """What tritonclient's InferResult holds."""
    return BackboneStatus.model_validate_json(answer.as_numpy(STATUS.name).item())


def tasks_of(
    models: Mapping[str, Model], statuses: Iterable[BackboneStatus], problems: Mapping[str, str]
) -> dict[str, TaskStatus]:
    """Every task by name.

    Args:
        models: those that are tasks, or may be: what the server has not loaded does not show what it is.
        statuses: of the backbones.
        problems: by the names of models, why the backbone of a task cannot be asked about it.
    """
    told = by_name(each for status in statuses for each in status.tasks)
    gone = {name: task for name, task in told.items() if task.state == "leaving" and name not in models}
    return gone | {
        name: as_served(name, told.get(name), model.ready, problems.get(name) or model.reason)
        for name, model in models.items()
    }


def by_name(tasks: Iterable[TaskStatus]) -> dict[str, TaskStatus]:
    """Tasks by name; one that is leaving a tag or a backbone stands behind its other self."""
    found: dict[str, TaskStatus] = {}
    for task in tasks:
        if task.state != "leaving" or task.name not in found:
            found[task.name] = task
    return found


def as_served(name: str, told: TaskStatus | None, ready: bool, problem: str = "") -> TaskStatus:
    """A task as its clients find it: what its backbone tells of it, unless the server sends it no requests.

    Args:
        told: what the backbone tells of it.
        ready: whether the server has loaded its entry.
        problem: why not, or why the backbone does not tell.
    """
    if told is not None and (ready or told.state == "refused"):
        return told
    known = told or TaskStatus(name=name, backbone="", state="not served")
    unknown = "its backbone does not find it in its model repository" if ready else NOT_LOADED
    return known.model_copy(update={"state": "not served", "error": problem or unknown})


def check_loaded(task: str, status: BackboneStatus) -> None:
    """Raise ServerProblem where a task that the server has loaded is refused by its backbone."""
    told = by_name(status.tasks).get(task)
    if told is None or told.state == "leaving":
        raise ServerProblem(
            f"{task!r} is loaded, but its backbone {status.name!r} does not find it in its model repository. "
            "Move its directory into the repository that the server runs on"
        )
    if told.state == "serving former version":
        raise ServerProblem(f"{task!r} goes on with version {told.version}, its new one is refused: {told.error}")
    if not told.healthy:
        raise ServerProblem(f"{task!r} is refused: {told.error}")
