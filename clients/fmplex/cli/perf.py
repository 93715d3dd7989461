"""Runs NVIDIA's perf_analyzer, with the shared libraries it needs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from fmplex_backend.errors import SetupProblem
from fmplex_controller.server.installation import wheel_libraries

# Libraries that the binary is linked to, and the names of their files in the server's wheel.
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}


def run(arguments: Sequence[str]) -> NoReturn:
    """Replace this process with perf_analyzer."""
    binary = find_perf_analyzer()
    os.execve(binary, [str(binary), *arguments], _environment())


def find_perf_analyzer() -> Path:
    """The one on PATH, else the one tritonclient's wheel brought."""
    on_path = shutil.which("perf_analyzer")
    if on_path:
        return Path(on_path)
    for file in metadata.files("tritonclient") or ():
        located = Path(str(file.locate())).resolve()
        if file.name == "perf_analyzer" and located.is_file():
            return located
    raise SetupProblem(
        f"no perf_analyzer on PATH, and tritonclient {metadata.version('tritonclient')} brings none. "
        "Install one that does: `pip install tritonclient==2.50.0`"
    )


def _environment() -> dict[str, str]:
    variables = dict(os.environ)
    linked = _linked_libraries()
    if linked is not None:
        folders = [variables.get("LD_LIBRARY_PATH", ""), str(linked)]
        variables["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, folders))
    return variables


def _linked_libraries() -> Path | None:
    """A folder with the wheel's libraries under their plain names; None without the wheel."""
    source = wheel_libraries()
    if source is None:
        return None
    folder = _cache_folder()
    for name, pattern in LIBRARIES.items():
        for file in source.glob(pattern):
            _link(folder / name, file)
    return folder


def _link(link: Path, target: Path) -> None:
    """Create or replace a link atomically: another perf_analyzer may be starting from the same folder."""
    staging = link.with_name(f"{link.name}.{os.getpid()}")
    staging.symlink_to(target)
    staging.replace(link)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "fmplex" / "perf_analyzer"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="fmplex-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="fmplex-"))
