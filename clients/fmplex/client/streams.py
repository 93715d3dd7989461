"""Replies of several parts: gRPC's stream of one request's responses, which stays open until the last one."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
import tritonclient.grpc as grpcclient
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, serialize_byte_tensor

from fmplex.client.wire import Array
from fmplex_backend.error_status import STATUS_IN_ERRORS, split_status
from fmplex_backend.errors import TaskProblem

NOT_SERVED = "Request for unknown model"  # Triton's own; in a stream its errors have no status
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 2000),  # by default 120 s: a server that is back would not be found so long
]


def stream_request(
    task: str,
    takes: str,
    array: Array,
    outputs: tuple[str, ...],
    parameters: Mapping[str, str],
    request_id: str = "",
) -> service_pb2.ModelInferRequest:
    """A request whose input tensor `takes` is the array, for these outputs."""
    raw = serialize_byte_tensor(array).item() if array.dtype == object else array.tobytes()
    request = service_pb2.ModelInferRequest(model_name=task, id=request_id, raw_input_contents=[raw])
    request.inputs.add(name=takes, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
    for name in outputs:
        request.outputs.add(name=name)
    for name, value in {**parameters, STATUS_IN_ERRORS: "true"}.items():
        request.parameters[name].string_param = value
    return request


def metadata(headers: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """A client's headers."""
    return tuple((name.lower(), value) for name, value in (headers or {}).items())


def error_in(message: service_pb2.ModelStreamInferResponse) -> InferenceServerException | None:
    """What a server sends in the place of a part, as its last message.

    Read on until the stream has ended before raising it: Triton 2.51 never releases a request whose stream is cancelled
    while it ends, and then waits for it when the server goes down.
    """
    if not message.error_message:
        return None
    status, words = split_status(message.error_message)
    if not status and words.startswith(NOT_SERVED):
        status = "NOT_FOUND"
    return InferenceServerException(words, status=status or None)


def tensors_in(response: grpcclient.InferResult, batched: bool = True) -> dict[str, Array]:
    """The output tensors of a part, batch first: it may hold some of those asked for.

    Args:
        batched: whether they come so; else the batch is one item.
    """
    found = {output.name: response.as_numpy(output.name) for output in response.get_response().outputs}
    return found if batched else {name: array[None] for name, array in found.items()}


def grpc_error(error: grpc.RpcError) -> InferenceServerException:
    """As tritonclient raises it."""
    return InferenceServerException(error.details(), status=str(error.code()))


def needs_grpc(task: str) -> TaskProblem:
    """Of a client over HTTP."""
    return TaskProblem(f"{task!r} answers in parts, and these come over gRPC. Use a client of gRPC: 'host:8001'")
