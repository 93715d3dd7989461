"""What in a repository Triton must not read, and what is in it where Triton itself cannot list it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from fmplex_backend.errors import SetupProblem, TaskRefused
from fmplex_backend.printable import printable
from fmplex_backend.repository.directory import UNLOADED
from fmplex_backend.repository.inspection import inspect
from fmplex_backend.repository.loadable import check_loadable
from fmplex_backend.repository.names import check_name


def check_polled(repository: Path) -> None:
    """Raise SetupProblem where a server that polls, and so reads everything, would end or never get ready."""
    found = [reason for name in _directories(repository) if (reason := _fatal(repository / name))]
    if found:
        lines = "".join(f"\n  {printable(reason)}" for reason in found)
        raise SetupProblem(
            f"tritonserver would not survive reading {repository}:{lines}\n"
            "Mend or move these directories, or serve with --control explicit, which leaves them out"
        )


def left_out(repository: Path) -> dict[str, str]:
    """Names of directories that are not to be loaded, with the reason of each."""
    found: dict[str, str] = {}
    for name in sorted(os.listdir(repository)):
        path = repository / name
        if not os.path.exists(path):  # nor can be followed
            found[name] = f"{path}: it is a link that leads nowhere, and Triton lists no model beside it. Remove it"
        elif os.path.isdir(path) and (reason := _misnamed(repository, name) or _fatal(path)):
            found[name] = reason
    return found | _kept_unloaded(repository, found)


def _kept_unloaded(repository: Path, without: Mapping[str, str]) -> dict[str, str]:
    """Those with the file UNLOADED, and what would bring them along: tasks on them, and ensembles of them."""
    names = [name for name in _directories(repository) if name not in without]
    found = {name: _marked(repository / name) for name in names if os.path.exists(repository / name / UNLOADED)}
    uses: dict[str, set[str]] = {}
    for name in names if found else ():
        with contextlib.suppress(OSError):
            inspected = inspect(repository, name)
            uses[name] = {inspected.backbone, *inspected.steps}
    while more := {
        name: used & found.keys() for name, used in uses.items() if name not in found and used & found.keys()
    }:
        found |= {name: f"it needs {min(used)}, which is kept unloaded" for name, used in more.items()}
    return found


def _marked(directory: Path) -> str:
    return f"{directory}: it holds the file {UNLOADED}. Remove that, or `fmplex task load {directory.name}`"


def names_to_load(repository: Path, without: Mapping[str, str]) -> list[str]:
    """What `--load-model` names: everything there is, where nothing is to be left out."""
    return [name for name in _directories(repository) if name not in without] if without else ["*"]


def models_in(repository: Path) -> list[str]:
    """Every directory whose name a model can have."""
    return [name for name in _directories(repository) if not _misnamed(repository, name)]


def _directories(repository: Path) -> list[str]:
    return sorted(name for name in os.listdir(repository) if os.path.isdir(repository / name))


def _fatal(directory: Path) -> str:
    try:
        check_loadable(directory)
    except TaskRefused as refused:
        return str(refused)
    except OSError as error:
        return f"{directory}: (directory): it cannot be read: {error.strerror}. Let the server's user read it"
    return ""


def _misnamed(repository: Path, name: str) -> str:
    try:
        check_name(repository, name)
    except TaskRefused as refused:
        return str(refused)
    return ""
