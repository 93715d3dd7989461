"""What the reply of a group says of each of its tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
from tritonclient.utils import InferenceServerException

from fmplex.client.problems import server_problem
from fmplex.client.wire import Address, Interface
from fmplex_backend.decoders.results import strings
from fmplex_backend.error_status import split_status
from fmplex_backend.errors import ServerProblem
from fmplex_backend.interface import ERRORS

Tensors = Mapping[str, npt.NDArray[Any]]


def owner(output: str, members: Sequence[str]) -> str:
    """The task whose output a group shows under this name; "" where it is the group's own."""
    return max((name for name in members if output.startswith(f"{name}.")), key=len, default="")


def problems_in(group: Interface, outputs: Tensors, address: Address) -> dict[str, ServerProblem]:
    """Why tasks of a group have failed, by what a reply says of one item."""
    found = {}
    for name, text in zip(group.members, strings(outputs[ERRORS.client_name]), strict=True):
        if text:
            status, message = split_status(text)
            found[name] = server_problem(InferenceServerException(message, status), address)
    return found


def own_outputs(group: Interface, member: str, outputs: Tensors) -> Tensors:
    """What one task has answered, by the names that it has when it is asked alone."""
    return {
        name.removeprefix(f"{member}."): tensor
        for name, tensor in outputs.items()
        if owner(name, group.members) == member
    }
