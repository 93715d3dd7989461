"""Whether a server can run here: the server, its Python, its libraries, shared memory and ports, one finding each."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fmplex_backend.errors import PortInUse, SetupProblem
from fmplex_controller.server.addresses import check_ports
from fmplex_controller.server.installation import (
    Installation,
    check_numpy,
    check_stub,
    find_tritonserver,
    libpython_folder,
    missing_libraries,
    python_version,
)
from fmplex_controller.server.options import ServerOptions
from fmplex_controller.server.process import SHARED_MEMORY

ROOM = 256 << 20  # bytes of shared memory that a backbone and some hundred requests at a time take
MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found; `text` says, of all but `ok`, what is wrong and how to mend it."""

    check: str
    status: Literal["ok", "warn", "bad"]
    text: str


def findings(options: ServerOptions) -> Iterator[Finding]:
    """Of a server with these options, one after the other; what needs a server is left out where there is none."""
    try:
        installation = find_tritonserver()
    except SetupProblem as problem:
        yield Finding("tritonserver", "bad", str(problem))
    else:
        yield Finding("tritonserver", "ok", str(installation.binary))
        yield from _of_installation(installation)
    yield shared_memory(SHARED_MEMORY)
    yield from ports(options)


def _of_installation(installation: Installation) -> Iterator[Finding]:
    yield _checked("python", f"{python_version()}, as the server's stub", lambda: check_stub(installation))
    yield _checked("numpy", "fits the server", lambda: check_numpy(installation))
    yield (libpython := _checked("libpython", "found", libpython_folder))
    if libpython.status == "ok":
        yield _libraries(missing_libraries(installation))


def _checked(check: str, fine: str, run: Callable[[], object]) -> Finding:
    try:
        run()
    except SetupProblem as problem:
        return Finding(check, "bad", str(problem))
    return Finding(check, "ok", fine)


def _libraries(missing: list[str]) -> Finding:
    if not missing:
        return Finding("libraries", "ok", "the loader finds all that the server needs")
    remedy = (
        "This system's glibc is too old: use one with glibc 2.35 or newer, or NVIDIA's container"
        if any("GLIBC_" in line for line in missing)
        else "Install the packages that hold these libraries"
    )
    return Finding("libraries", "bad", f"the loader does not find {'; '.join(missing)}. {remedy}")


def shared_memory(folder: Path) -> Finding:
    """Of the folder of shared memory, through which Triton and the backbones exchange tensors."""
    more = "In a container: --shm-size 1g, or shm_size in its compose file"
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        return Finding("shared memory", "bad", f"{folder} is missing or cannot be written. Mount a tmpfs there. {more}")
    usage = shutil.disk_usage(folder)
    size = f"{folder} has {usage.free // MEGABYTE} of {usage.total // MEGABYTE} MB free"
    if usage.free < ROOM:
        return Finding("shared memory", "warn", f"{size}, large requests may find no room. {more}")
    return Finding("shared memory", "ok", size)


def ports(options: ServerOptions) -> Iterator[Finding]:
    """Of each port that the server is to listen on."""
    for service, port in options.ports.items():
        others = tuple(f"--allow-{other}=false" for other in options.ports if other != service)
        alone = replace(options, extra=(*options.extra, *others))
        try:
            check_ports(alone.host, alone.ports)
        except PortInUse as problem:
            taken = getattr(problem.__cause__, "errno", None) == errno.EADDRINUSE  # by our own server, perhaps
            yield Finding(f"{service} port", "warn" if taken else "bad", str(problem))
        else:
            yield Finding(f"{service} port", "ok", f"{options.host}:{port} is free")
