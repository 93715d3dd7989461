"""What the clients say and hear: a task's interface, requests in parts, errors, waiting before another try.

No input or output: the clients add a transport, gRPC or HTTP, waiting or asyncio.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.utils import InferenceServerException

from fmplex.errors import DeadlineExceeded, ServerProblem, TaskProblem, Unreachable
from fmplex.results import kind_of

BASE_S, MOST_S = 0.05, 2.0  # before the second try, and at most
UNAVAILABLE = ("UNAVAILABLE", "503")
LATE = ("DEADLINE_EXCEEDED", "499", "504")
HIDDEN = ("usage",)


@dataclass(frozen=True, slots=True)
class Interface:
    """A served task as its configuration says it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    outputs: tuple[str, ...]
    max_batch_size: int
    takes: str = "TEXT"

    @staticmethod
    def of(config: Mapping[str, Any]) -> Interface:
        """Of Triton's model configuration, as a JSON document."""
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        outputs = tuple(each["name"] for each in config["output"] if each["name"] not in HIDDEN)
        return Interface(
            name=config["name"],
            kind=parameters.get("decoder") or kind_of(outputs),
            labels=tuple(json.loads(parameters.get("labels", "[]"))),
            outputs=outputs,
            max_batch_size=max(1, int(config.get("max_batch_size", 1))),
            takes=config["input"][0]["name"],
        )


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is: "localhost:8001" is gRPC, "http://localhost:8000" is HTTP."""

    host: str
    http: bool
    ssl: bool

    @staticmethod
    def of(url: str) -> Address:
        """Out of a URL."""
        scheme, separator, host = url.rpartition("://")
        if separator and scheme not in ("http", "https", "grpc", "grpcs"):
            raise ServerProblem(f"{url!r} is no address of a server. Say localhost:8001 or http://localhost:8000")
        return Address(host.rstrip("/"), scheme.startswith("http"), scheme.endswith("s"))


DATATYPES = {"TEXT": "BYTES", "FEATURES": "FP32"}


def array_of(takes: str, rows: Sequence[Any]) -> npt.NDArray[Any]:
    """Texts as TEXT is sent, [n, 1], or rows of numbers as FEATURES, [n, f]; raises TaskProblem."""
    if takes == "TEXT":
        if not all(isinstance(row, str) for row in rows):
            odd = next(row for row in rows if not isinstance(row, str))
            raise TaskProblem(f"the task reads texts, not {odd!r}. Give one text or a list of them")
        return np.array([text.encode() for text in rows], dtype=np.object_)[:, None]
    try:
        numbers = np.array(rows, dtype=np.float32)
    except (TypeError, ValueError):
        numbers = np.empty(0, dtype=np.float32)
    if numbers.ndim != 2:
        raise TaskProblem("the task reads rows of as many numbers each. Give a list of them, e.g. [[0.5, 12.0]]")
    return numbers


def asked(module: Any, about: Interface, rows: Sequence[Any], slo_ms: float | None) -> dict[str, Any]:
    """What `infer` of tritonclient's `module` (gRPC or HTTP) is called with; raises TaskProblem."""
    array = array_of(about.takes, rows)
    tensor = module.InferInput(about.takes, list(array.shape), DATATYPES[about.takes])
    tensor.set_data_from_numpy(array)
    options: dict[str, Any] = {
        "model_name": about.name,
        "inputs": [tensor],
        "outputs": [module.InferRequestedOutput(name) for name in about.outputs],
    }
    if slo_ms is not None:
        options["parameters"] = {"slo_ms": f"{slo_ms:g}"}
    return options


def portions(rows: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    """As many as the server takes at once."""
    for start in range(0, len(rows), most):
        yield rows[start : start + most]


def waits(retries: int) -> Iterator[float]:
    """Seconds before each further try: doubling, with jitter, so that clients do not come back in step."""
    for number in range(retries):
        yield random.uniform(0.5, 1.0) * min(MOST_S, BASE_S * 2**number)


def worth_another_try(error: InferenceServerException) -> bool:
    """Whether the server may say something else in a moment: a full queue, a task on its way in or out."""
    return _status(error) in UNAVAILABLE or "Connection refused" in str(error) or "failed to connect" in str(error)


def problem(error: InferenceServerException, url: str) -> ServerProblem:
    """The server's error in our words."""
    status, message = _status(error), str(error.message())
    if status in LATE or "timed out" in message.lower() or "deadline" in message.lower():
        return DeadlineExceeded(f"{url}: no answer within the time given: {message}", status)
    if worth_another_try(error):
        return Unreachable(f"{url}: {message}", status)
    return ServerProblem(message, status)


def _status(error: InferenceServerException) -> str:
    return str(error.status() or "").removeprefix("StatusCode.")
