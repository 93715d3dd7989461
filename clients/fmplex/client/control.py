"""What a call that controls models carries: the server's control key, given or found on this host."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from fmplex.client.wire import Address
from fmplex_backend.control_key import GRPC_HEADER, HTTP_HEADER, VARIABLE, check_key, kept_key
from fmplex_backend.errors import ControlClosed, SetupProblem

METHODS = ("get_model_repository_index", "load_model", "unload_model")  # of tritonclient's


def control_headers(address: Address, given: str | None) -> dict[str, str]:
    """The header with the key: the one that was given, else the environment's, else the one kept on this host.

    Empty where there is none: the server may be open.
    """
    key = given or os.environ.get(VARIABLE) or kept_for(address)
    if not key:
        return {}
    try:
        check_key(key, VARIABLE if not given and os.environ.get(VARIABLE) else "control_key")
    except SetupProblem as error:
        raise ControlClosed(str(error)) from None
    return {HTTP_HEADER if address.http else GRPC_HEADER: key}


def kept_for(address: Address) -> str:
    """The key kept for a server on this host, "" for none: a key is no other host's business."""
    try:
        parts = urlsplit(f"//{address.host}")
        host, port = parts.hostname or "", parts.port
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # no number, or a name
        return ""
    return kept_key(port) if local and port else ""


def closed_to(url: str, sent: Mapping[str, str] | None, status: str) -> ControlClosed:
    """What to do about a server that wants its key, or another one than was sent in these headers."""
    has_key = any(name.lower() in (HTTP_HEADER, GRPC_HEADER) for name in sent or ())
    problem = "the control key is not this server's" if has_key else "it wants its control key for that"
    return ControlClosed(
        f"{url}: {problem}. On the server's host, the user who started it needs none; everyone else gives the "
        f"server's key as {VARIABLE} or Client(control_key=...). `fmplex control-key` there prints it",
        status,
    )
