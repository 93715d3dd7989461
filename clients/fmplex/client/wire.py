"""How the clients and a server talk: addresses, a task's interface, requests, and the backoff between retries.

Pure functions and values; input and output are the transports' work.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import np_to_triton_dtype

from fmplex.client.results import kind_of
from fmplex.data.rows import items_of
from fmplex_backend.errors import ServerProblem, TaskProblem
from fmplex_backend.families import input_named
from fmplex_backend.families.spec import TableInput
from fmplex_backend.interface import USAGE
from fmplex_backend.repository.groups import GROUP

Array = npt.NDArray[Any]
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.05, 2.0
GRPC_PORT = 8001
# A name, an IPv4 address, or an IPv6 address in brackets; and a port.
HOST = re.compile(r"([^\s:/\[\]]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?")
HAS_PORT = re.compile(r":\d+$")


@dataclass(frozen=True, slots=True)
class Interface:
    """A served task, or group of tasks, as its configuration describes it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    outputs: tuple[str, ...]
    max_batch_size: int
    takes: str = "TEXT"
    size: int | None = None  # the last dim of its input, where that is fixed
    streams: bool = False  # a reply may have several parts
    batched: bool = True  # tensors have a batch dimension
    members: tuple[str, ...] = ()  # of a group: its tasks

    @staticmethod
    def of(config: Mapping[str, Any]) -> Interface:
        """Of Triton's model configuration, as a JSON document."""
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        members = tuple(name.strip() for name in parameters.get(GROUP, "").split(",") if name.strip())
        receipts = {USAGE, *(f"{member}.{USAGE}" for member in members)}
        outputs = tuple(each["name"] for each in config["output"] if each["name"] not in receipts)
        return Interface(
            name=config["name"],
            kind=parameters.get("decoder") or kind_of(outputs),
            labels=tuple(json.loads(parameters.get("labels", "[]"))),
            outputs=outputs,
            max_batch_size=max(1, int(config.get("max_batch_size", 1))),
            takes=config["input"][0]["name"],
            size=_fixed_size(config["input"][0]),
            streams=bool(config.get("model_transaction_policy", {}).get("decoupled")),
            batched=bool(int(config.get("max_batch_size", 0))),
            members=members,
        )


def _fixed_size(tensor: Mapping[str, Any]) -> int | None:
    last = int(tensor.get("dims", [-1])[-1])  # gRPC's documents have numbers as strings
    return last if last >= 0 else None


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is: "localhost:8001" is gRPC, "http://localhost:8000" is HTTP."""

    host: str  # with the port
    http: bool
    ssl: bool
    url: str  # for messages

    @staticmethod
    def of(url: str) -> Address:
        """Out of a URL; one without a scheme and a port is of Triton's gRPC port. Raises ServerProblem."""
        scheme, separator, place = url.strip().rpartition("://")
        place = place.rstrip("/")
        known = scheme in ("http", "https", "grpc", "grpcs") if separator else True
        http, ssl = scheme.startswith("http"), scheme.endswith("s")
        if not known or not HOST.fullmatch(place.partition("/")[0] if http else place):
            raise ServerProblem(f"{url!r} is no address of a server. Say localhost:8001 or http://localhost:8000")
        if not http and not ssl and not HAS_PORT.search(place):
            place = f"{place}:{GRPC_PORT}"
        return Address(place, http, ssl, f"{scheme}://{place}" if separator else place)


# -- requests


def items_in(takes: str, data: Any) -> list[Any]:
    """What a caller gave, one item or several, as a list; raises TaskProblem.

    Of inputs whose items may take all of a table: a table or the file of one too, as `Task.predict` reads them.
    """
    reads = input_named(takes)
    if isinstance(reads, TableInput):
        return items_of(data, reads)
    one = isinstance(data, str) if reads is None else reads.is_item(data)
    return [data] if one else list(data)


def array_of(takes: str, items: Sequence[Any]) -> Array:
    """Items as the input tensor `takes` is sent, batch first; raises TaskProblem."""
    reads = input_named(takes)
    if reads is None:
        raise TaskProblem(f"the task reads {takes}, which no family here has. Send the tensor with a Triton client")
    return reads.array(items)


def parameters_of(slo_ms: float | None, wishes: Mapping[str, Any] | None = None) -> dict[str, str]:
    """A request's parameters: strings, as Triton has no numbers with fractions there in all versions."""
    given = {name: _text(value) for name, value in (wishes or {}).items()}
    return given if slo_ms is None else given | {"slo_ms": f"{slo_ms:g}"}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def infer_arguments(
    http: bool,
    interface: Interface,
    rows: Sequence[Any],
    outputs: Sequence[str],
    parameters: Mapping[str, str],
    request_id: str = "",
) -> dict[str, Any]:
    """The arguments of tritonclient's `infer` for one request; raises TaskProblem."""
    module = httpclient if http else grpcclient
    array = array_of(interface.takes, rows)
    tensor = module.InferInput(interface.takes, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return {
        "model_name": interface.name,
        "inputs": [tensor],
        "outputs": [module.InferRequestedOutput(name) for name in outputs],
        "parameters": dict(parameters),
        "request_id": request_id,
    }


def batches(rows: Sequence[Any], max_batch_size: int) -> Iterator[Sequence[Any]]:
    """Consecutive rows, at most `max_batch_size` of them each."""
    for start in range(0, len(rows), max_batch_size):
        yield rows[start : start + max_batch_size]


def backoff() -> Iterator[float]:
    """Seconds before each retry: exponential, with jitter, so that clients do not come back in step."""
    longest = FIRST_BACKOFF_S
    while True:
        yield random.uniform(0.5, 1.0) * longest
        longest = min(MAX_BACKOFF_S, 2 * longest)


def is_unloaded(error: ServerProblem) -> bool:
    """Whether a server has the model in its repository, but does not serve it."""
    return "has no available versions" in str(error)
