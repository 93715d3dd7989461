"""The directory of what is recorded about one server and its repository."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from fmplex_backend.errors import SetupProblem
from fmplex_backend.printable import printable
from fmplex_backend.state_folder import state_folder

VARIABLE = "FMPLEX_RECORDS"
ORIGIN = "origin.json"  # of which repository and server the records are


def records_folder(repository: Path, server: str, given: Path | None = None) -> Path:
    """The directory for a repository and the gRPC address of its server; `given`, else FMPLEX_RECORDS, comes first.

    Raises SetupProblem where there is none.
    """
    if given is not None or os.environ.get(VARIABLE):
        return given or Path(os.environ[VARIABLE])
    mark = hashlib.sha256(f"{repository.resolve()}\0{_place(server)}".encode("utf-8", "surrogateescape")).hexdigest()
    return _all() / mark[:16]


def make_folder(folder: Path, repository: Path, server: str) -> Path:
    """Create the directory, which its owner alone may enter; raises SetupProblem."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        origin = {"repository": printable(str(repository.resolve())), "server": _place(server)}
        aside = folder / f".{ORIGIN}.{os.getpid()}"
        aside.write_text(json.dumps(origin), encoding="utf-8")
        aside.replace(folder / ORIGIN)
    except OSError as error:
        raise SetupProblem(
            f"{folder}: nothing can be recorded there: {error.strerror}. Name a directory with --records or {VARIABLE}"
        ) from None
    return folder


def existing_folder(repository: Path, server: str, given: Path | None = None) -> Path:
    """The directory, for a reader; raises SetupProblem where nothing has been recorded."""
    folder = records_folder(repository, server, given)
    if folder.is_dir():
        return folder
    others = "; ".join(sorted(f"{place} on {root}" for root, place in _origins())) or "none"
    raise SetupProblem(
        f"no controller of the server {server} on {printable(str(repository))} has recorded anything on this host "
        f"({folder}). Give its --server and --repository, or --records. Recorded are: {others}"
    )


def _all() -> Path:
    try:
        return state_folder() / "records"
    except RuntimeError as error:
        raise SetupProblem(f"there is no place for records: {error}. Name a directory with --records") from None


def _origins() -> Iterator[tuple[str, str]]:
    for file in _all().glob(f"*/{ORIGIN}"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            origin = json.loads(file.read_text(encoding="utf-8"))
            yield str(origin["repository"]), str(origin["server"])


def _place(server: str) -> str:
    """The address, with the name of this host in the place of all that mean it: a home may be shared by several."""
    address = server if "//" in server else f"//{server}"
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
        number = None if host == "localhost" else ipaddress.ip_address(host)
    except ValueError:  # a name
        return address.partition("//")[2].lower()
    is_own = number is None or number.is_loopback or number.is_unspecified
    return f"{socket.gethostname() if is_own else host}:{port}"
