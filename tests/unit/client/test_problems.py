"""What clients raise for what transports raise: the kind, the remedy, and whether it is sent again."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from fmplex import Busy, ControlClosed, DeadlineExceeded, ServerProblem, Unreachable
from fmplex.client.problems import connection_problem, not_triton, server_problem
from fmplex.client.streams import error_in
from fmplex.client.wire import Address
from fmplex_backend.errors import QueueFull
from fmplex_backend.serving.preparation import _check_room
from fmplex_backend.types import Request, Vfm

GRPC, HTTP = Address.of("here:1"), Address.of("http://here:1")
UNAVAILABLE = "StatusCode.UNAVAILABLE"


@pytest.mark.parametrize(
    ("status", "message", "kind", "again"),
    [
        (UNAVAILABLE, "'t' has 3 requests waiting, its max_queue is 3; send them more slowly", Busy, "later"),
        ("503", "'t' has 3 requests waiting, its max_queue is 3; send them more slowly", Busy, "later"),
        (UNAVAILABLE, "Exceeds maximum queue size", Busy, "later"),
        ("429", "Too many requests", Busy, "later"),
        ("StatusCode.RESOURCE_EXHAUSTED", "Too many requests", Busy, "later"),
        ("StatusCode.RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 4)", ServerProblem, "never"),
        (UNAVAILABLE, "the task 't' was removed or moved", Unreachable, "later"),
        ("503", "not ready", Unreachable, "later"),
        ("StatusCode.CANCELLED", "the server ended the request", Unreachable, "later"),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceeded, "never"),
        ("StatusCode.INVALID_ARGUMENT", "no such thing", ServerProblem, "never"),
        ("StatusCode.INTERNAL", "the pass failed", ServerProblem, "never"),
        (None, "[Errno 111] Connection refused", Unreachable, "soon"),
        (UNAVAILABLE, "This protocol is restricted, expecting header 'key'", ControlClosed, "never"),
    ],
)
def test_errors(status: str | None, message: str, kind: type[ServerProblem], again: str) -> None:
    problem = server_problem(InferenceServerException(message, status=status), GRPC)
    assert type(problem) is kind
    assert problem.again == again
    assert message in str(problem) or again == "soon"


def test_a_task_that_is_not_there() -> None:
    message = "Request for unknown model: 'spma' is not found"
    problem = server_problem(InferenceServerException(message, status="400"), HTTP)
    assert str(problem).startswith(f"{message}. fmplex task list says which")


def test_a_directory_that_triton_does_not_read() -> None:
    message = "failed to load 'spma', failed to poll from model repository"
    problem = server_problem(InferenceServerException(message, status="StatusCode.INTERNAL"), GRPC)
    assert str(problem).startswith(f"{message}. It has no such directory, or cannot read it: fmplex task list")


@pytest.mark.parametrize("full_of", ["max_queue", "taken_bytes"])
def test_a_backbones_words_for_a_full_queue_are_known(full_of: str) -> None:
    vfm = Vfm(0, "t")
    setattr(vfm, full_of, {"max_queue": 0, "taken_bytes": vfm.max_queue_bytes}[full_of])
    request = Request(vfm, {}, (), 0.0, lambda reply, last: None, input_bytes=1)
    with pytest.raises(QueueFull) as full:
        _check_room(vfm, request)
    assert type(server_problem(InferenceServerException(str(full.value), status=UNAVAILABLE), GRPC)) is Busy


@pytest.mark.parametrize(
    ("address", "message", "says", "again"),
    [
        (
            "localhost",
            "failed to connect to all addresses; last error: Connection refused",
            "localhost:8001: no",
            "soon",
        ),
        (
            "http://h:1",
            "Cannot connect to host h:1 ssl:default [Connect call failed ('::1', 1)]",
            "fmplex serve",
            "soon",
        ),
        ("h.invalid:1", "errors resolving h.invalid:1: [field:hostname lookup error]", "its name is not known", "soon"),
        ("http://h:1", "('Expected HTTP/', 8)", "does not speak HTTP. If this is its gRPC port, say h:1;", "never"),
        ("h:1", "failed to connect to all addresses; last error: Socket closed", "HTTP port, say http://h:1", "soon"),
        (
            "grpcs://h:1",
            "SSL_ERROR_SSL: WRONG_VERSION_NUMBER",
            "not speak TLS. Without TLS its address is h:1",
            "never",
        ),
        ("https://h:1", "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF", "Without TLS its address is http://h:1", "never"),
        ("https://h:1", "Cannot connect to host h:1 ssl:default [None]", "does not speak TLS", "never"),
        ("http://h:1", "[Errno 104] Connection reset by peer", "http://h:1: .*reset by peer", "later"),
        ("h:1", "Socket closed", "h:1: Socket closed", "later"),
    ],
)
def test_a_wrong_address_names_the_remedy(address: str, message: str, says: str, again: str) -> None:
    problem = connection_problem(message, Address.of(address))
    with pytest.raises(Unreachable, match=says):
        raise problem
    assert problem.again == again
    assert "\n" not in str(problem)


def test_an_http_server_of_another_kind() -> None:
    with pytest.raises(Unreachable, match="http://here:1: the server there is not Triton's HTTP endpoint"):
        raise not_triton(HTTP)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("Request for unknown model: 'spam' has no available versions", "NOT_FOUND"),
        ("Request for unknown model: 'spam' is not found", "NOT_FOUND"),
        ("[UNAVAILABLE] wait", "UNAVAILABLE"),
        ("something else", None),
    ],
)
def test_an_error_in_a_stream_has_a_status_where_its_words_tell_one(words: str, status: str | None) -> None:
    found = error_in(service_pb2.ModelStreamInferResponse(error_message=words))
    assert found is not None
    assert found.status() == status
