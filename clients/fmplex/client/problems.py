"""What the clients raise for what their transports raise: a kind, one line with the remedy, and whether to try again.

Everything a client sends may be sent twice: inference changes nothing on the server, and a second load or unload
finds its work done. So what is sent again is what may succeed then: where the server has refused the request before
it ran, where the connection broke, and where nobody took it.
"""

from __future__ import annotations

from tritonclient.utils import InferenceServerException

from fmplex.client.wire import Address
from fmplex_backend.errors import Busy, ControlClosed, DeadlineExceeded, ServerProblem, Unreachable

BUSY = ("RESOURCE_EXHAUSTED", "429")
UNAVAILABLE = ("UNAVAILABLE", "503")
CANCELLED = "CANCELLED"  # by a server that goes down: what this side cancels does not come here
TIMED_OUT = ("DEADLINE_EXCEEDED", "499", "504")
# A backbone's answer for a full queue, and Triton's own; other reasons for UNAVAILABLE pass by themselves too.
QUEUE_IS_FULL = ("its max_queue", "Exceeds maximum queue size")
RESTRICTED = "is restricted, expecting header"  # Triton's, of an API that wants the control key
NOT_JSON = "an exception occurred in the client while decoding the response"  # tritonclient's, of an HTTP error
NO_TLS = ("WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "ssl:default [None]")
WHICH_TASKS = "fmplex task list says which tasks there are; one that was added is loaded with --server"
NOT_POLLED = "failed to poll from model repository"  # Triton's, whatever the reason
WHY_NOT_POLLED = (
    "It has no such directory, or cannot read it: fmplex task list says which tasks there are, and fmplex task check "
    "what is wrong with one"
)
NO_STAT = "failed to stat file "  # Triton's, of what stands in its repository; the path follows
NOT_UTF8 = "deserializing"  # gRPC's, of a list of models that has such a name in it
LATE, LONGER = "no answer within the time given", "Give it longer, or see how long its queue is: fmplex task list"
NO_HTTP = ("Expected HTTP/",)
NOBODY = ("Connection refused", "Connect call failed", "not known", "name resolution", "lookup error")
HANGS_UP_ON_GRPC = ("failed to connect to all addresses", "Socket closed")


def server_problem(error: InferenceServerException, address: Address) -> ServerProblem:
    """tritonclient's error as one of FMplex's, with the server's message."""
    status, message = str(error.status() or "").removeprefix("StatusCode."), str(error.message())
    if status in TIMED_OUT:
        return DeadlineExceeded(f"{address.url}: {LATE}: {message}", status)
    if status == CANCELLED:
        return Unreachable(f"{address.url}: the server ended the request, as it does while it goes down", status)
    if NOT_JSON in message:
        return not_triton(address)
    if RESTRICTED in message:  # also UNAVAILABLE, but only the control key helps
        return ControlClosed(message, status)
    if _is_busy(status, message):
        return Busy(f"{address.url}: {message}", status)
    if status in UNAVAILABLE or _has(message, NOBODY) or "failed to connect" in message:
        return connection_problem(message, address, status)
    remedy = ""
    if message.endswith("is not found") and "unknown model" in message:
        remedy = f". {WHICH_TASKS}"
    elif message.endswith(NOT_POLLED):
        remedy = f". {WHY_NOT_POLLED}"
    return ServerProblem(f"{message}{remedy}", status)


def connection_problem(message: str, address: Address, status: str = "UNAVAILABLE") -> ServerProblem:
    """Of a connection that could not be made or broke, and of a server that answers UNAVAILABLE."""
    url, host = address.url, address.host
    if address.ssl and _has(message, NO_TLS):
        plain = f"http://{host}" if address.http else host
        return Unreachable(
            f"{url}: the server there does not speak TLS. Without TLS its address is {plain}", status, again="never"
        )
    if _has(message, NO_HTTP):
        return Unreachable(
            f"{url}: the server there does not speak HTTP. If this is its gRPC port, say {host}; HTTP has a port of "
            "its own, by default http://localhost:8000",
            status,
            again="never",
        )
    if _has(message, NOBODY):
        return Unreachable(
            f"{url}: no server there ({_reason(message)}). Start one with fmplex serve, or name its address: "
            "localhost:8001 for gRPC or http://localhost:8000 for HTTP, with the ports it was started with",
            status,
            again="soon",
        )
    if not address.http and all(part in message for part in HANGS_UP_ON_GRPC):
        return Unreachable(
            f"{url}: the server there hangs up on gRPC. If this is its HTTP port, say http://{host}, and if it wants "
            f"TLS, grpcs://{host}; gRPC has a port of its own, by default localhost:8001",
            status,
            again="soon",
        )
    return Unreachable(f"{url}: {message}", status)


def index_problem(error: ServerProblem | UnicodeDecodeError, url: str) -> ServerProblem | None:
    """Of a server that cannot list its models for what is in its repository; None where the error is another one."""
    status = "" if isinstance(error, UnicodeDecodeError) else error.status
    _, found, path = str(error).partition(NO_STAT)
    if found:
        problem = f"{path} is a link that leads nowhere, or cannot be read. Remove it"
    elif isinstance(error, UnicodeDecodeError) or NOT_UTF8 in str(error):
        problem = "the name of a directory in its repository is not UTF-8. Rename that directory"
    else:
        return None
    return ServerProblem(
        f"{url}: the server cannot list its models: {problem}, or move it out of the repository", status
    )


def not_triton(address: Address) -> ServerProblem:
    """Of an HTTP server whose answer is not Triton's."""
    return Unreachable(
        f"{address.url}: the server there is not Triton's HTTP endpoint: it answers without JSON. Name the HTTP port, "
        "by default http://localhost:8000 (8002 has the metrics)",
        again="never",
    )


def _is_busy(status: str, message: str) -> bool:
    if status in BUSY:
        return "larger than max" not in message  # a message's size is also RESOURCE_EXHAUSTED
    return status in UNAVAILABLE and _has(message, QUEUE_IS_FULL)


def _has(message: str, parts: tuple[str, ...]) -> bool:
    return any(part in message for part in parts)


def _reason(message: str) -> str:
    return "Connection refused" if _has(message, NOBODY[:2]) else "its name is not known"
