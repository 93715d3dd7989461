"""An error's status in its message, for clients of gRPC's stream, which ask for it by a request parameter.

In a stream, an error is a message without a status. Triton's own way to give it one, the header `triton_grpc_error`,
ends Triton 2.51 when the client cancels the stream, or its deadline passes, just as the error is sent.
"""

from __future__ import annotations

import re

STATUS_IN_ERRORS = "status_in_errors"  # the request parameter; any value asks for it
_OTHER_IN_GRPC = {"INVALID_ARG": "INVALID_ARGUMENT"}  # Triton's names of statuses are gRPC's, but for this
_BEGINNING = re.compile(r"^(?P<by_triton>(in ensemble '[^']*', )?)\[(?P<code>[A-Z_]+)\] ")


def with_status(code: str, message: str) -> str:
    """The message behind the status, by Triton's name."""
    return f"[{code}] {message}"


def split_status(message: str) -> tuple[str, str]:
    """gRPC's status, "" where the message has none, and the message without it."""
    if not (found := _BEGINNING.match(message)):
        return "", message
    code = found["code"]
    return _OTHER_IN_GRPC.get(code, code), found["by_triton"] + message[found.end() :]
