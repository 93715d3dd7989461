"""Loading a saved task on a server, and waiting until that answers as the task does here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fmplex.client.sync import Client
from fmplex_backend.decoders.results import strings
from fmplex_backend.errors import ServerProblem

CLOSE = 0.05  # tolerance between served values and those of this process, which may compute in another dtype


def load_and_wait(
    server: str,
    name: str,
    asked: Sequence[Any],
    answer: Mapping[str, Any],
    timeout: float,
    control_key: str | None,
    parameters: Mapping[str, Any],
) -> None:
    """Load a task and wait until the server gives `answer` to the one item in `asked`; raises ServerProblem.

    Args:
        parameters: of the request with that item.
    """
    with Client(server, timeout=timeout, control_key=control_key) as client:
        client.load(name)
        client.wait_for(name, lambda: _agree(client.outputs(name, asked, parameters=parameters), answer), timeout)


def not_served(error: ServerProblem, name: str, server: str, path: Path) -> ServerProblem:
    """The same error, which says where the task is saved and how it is served later."""
    return type(error)(
        f"{error}. Nothing is lost: {name!r} is saved in {path}. To serve it, when that is mended: "
        f"fmplex task load {name} --server {server}",
        error.status,
    )


def _agree(served: Sequence[Mapping[str, Any]], here: Mapping[str, Any]) -> bool:
    """Whether the server answers with this version's weights.

    Numbers with fractions tell, and where a task has none, every output: the label of near scores may be another one
    in another dtype.
    """
    (there,) = served
    telling = [name for name, value in here.items() if np.issubdtype(value.dtype, np.floating)]
    return all(
        name not in there or (there[name].shape == here[name].shape and _close(there[name], here[name]))
        for name in telling or here
    )


def _close(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    if np.issubdtype(other.dtype, np.floating):
        return bool(np.allclose(one, other, atol=CLOSE, rtol=CLOSE))
    if other.dtype == object:
        return strings(one) == strings(other)
    return bool(np.array_equal(one, other))
