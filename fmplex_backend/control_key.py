"""The key that a server wants of whoever controls its models: its form, its headers, and the file it is found in.

A server keeps the key that it made itself in a file of the user who started it, one for each port it listens on, so
that the clients of that user on the same host find the key by the port they talk to.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from pathlib import Path

from fmplex_backend.errors import SetupProblem
from fmplex_backend.state_folder import state_folder

VARIABLE = "FMPLEX_CONTROL_KEY"
HTTP_HEADER = "fmplex-key"
GRPC_HEADER = f"triton-grpc-protocol-{HTTP_HEADER}"
MAX_LENGTH = 512  # of a header's value; HTTP and gRPC carry it with room to spare

_FORM = re.compile(rf"[!-~]{{1,{MAX_LENGTH}}}", re.ASCII)


def check_key(key: str, source: str) -> str:
    """The key; raises SetupProblem, naming its `source`, for one that no HTTP header or gRPC metadata can carry."""
    if _FORM.fullmatch(key):
        return key
    problem = f"has {len(key)} characters" if len(key) > MAX_LENGTH else "has a space or is not printable ASCII"
    raise SetupProblem(
        f"{source}: the control key {problem if key else 'is empty'}. Give 1 to {MAX_LENGTH} letters, digits or signs "
        "of ASCII, or give none: the server then makes one"
    )


def read_key(file: Path) -> str:
    """The key in a file that the user wrote, without the newline at its end; raises SetupProblem."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SetupProblem(f"{file}: the control key cannot be read: {error}. Write it there, as one line") from None
    return check_key(text.rstrip("\r\n"), str(file))


def key_file(port: int) -> Path:
    """Where the key of a server that listens on `port` of this host is kept; a home may be shared by several hosts."""
    return state_folder() / "control-keys" / f"{socket.gethostname()}-{port}"


def keep_key(port: int, key: str) -> Path:
    """Write the key to its file, which its owner alone reads; replaces what an earlier server left."""
    try:
        file = key_file(port)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = file.with_name(f".{file.name}.{os.getpid()}")
        aside.unlink(missing_ok=True)
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as out:
            out.write(f"{key}\n")
        aside.replace(file)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        raise SetupProblem(
            f"the control key cannot be kept for the clients of this host: {error}. Give one with --control-key-file "
            f"or {VARIABLE}, name a directory with XDG_STATE_HOME, or let everyone control the server with --open"
        ) from None
    return file


def kept_key(port: int) -> str:
    """The key of a server on `port` of this host, which this user has started; "" where there is none."""
    try:
        return key_file(port).read_text(encoding="utf-8").strip()
    except (OSError, RuntimeError, ValueError):
        return ""


def forget_key(port: int, key: str | None = None) -> None:
    """Remove the file of a port, where it holds `key`, or whatever it holds."""
    if key is None or kept_key(port) == key:
        with contextlib.suppress(OSError, RuntimeError):
            key_file(port).unlink(missing_ok=True)
