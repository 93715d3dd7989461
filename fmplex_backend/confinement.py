"""What a task may have the backbone read: files of its version directory, and of roots that the operator allows.

Links of a version are looked at before it is loaded. Someone may exchange them meanwhile, so that every file that is
opened while it is loaded is asked, too, where it really lies.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import AnyStr

from fmplex_backend.errors import TaskRefused
from fmplex_backend.server_variables import ALLOW_LINKS

MAX_VERSION_BYTES = 2 << 30
REMEDY = "Copy it into the version directory, or serve with --allow-links and a directory that holds it"


@dataclass(frozen=True, slots=True)
class Confinement:
    """`roots`: real paths that links may lead into. `most`: bytes of all files of a version together."""

    roots: tuple[str, ...] = ()
    most: int = MAX_VERSION_BYTES

    @staticmethod
    def of(environment: Mapping[str, str], most: int) -> Confinement:
        """With the roots that an environment allows."""
        named = environment.get(ALLOW_LINKS, "").split(os.pathsep)
        return Confinement(tuple(os.path.realpath(root) for root in named if root), most)

    @contextmanager
    def around(self, version: Path, size: int) -> Iterator[None]:
        """Let nothing be opened but files of this version; raises TaskRefused where its links lead out of it.

        Args:
            version: ROOT/TASK/NUMBER.
            size: bytes of its files.
        """
        if size > self.most:
            raise TaskRefused(
                version,
                "(whole version)",
                f"its files have {size >> 20} MiB, {self.most >> 20} MiB are allowed",
                "Leave out what the task does not need, or raise max_version_bytes in the backbone's config.pbtxt",
            )
        here = os.path.join(os.path.realpath(version.parents[1]), *version.parts[-2:])
        for path in _links(version):
            real = os.path.realpath(path)
            if not is_inside(real, (here, *self.roots)):
                raise TaskRefused(path, "(link)", f"it leads to {real}, outside of the version directory", REMEDY)
        token = _confined.set(Confinement((here, *self.roots), self.most))
        try:
            yield
        finally:
            _confined.reset(token)


_confined: ContextVar[Confinement | None] = ContextVar("confined", default=None)  # while a version is loaded


def check_opened(descriptor: int, size: int) -> None:
    """Raise OSError where an open file may not be read by what this thread loads."""
    confined = _confined.get()
    if confined is None:
        return
    try:
        real = os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:  # not on Linux, where no server runs: the links were looked at before
        return
    if not is_inside(real, confined.roots):
        raise OSError(errno.EXDEV, f"it lies outside of the version directory, at {real}")
    if size > confined.most:
        raise OSError(errno.EFBIG, f"it has {size >> 20} MiB, {confined.most >> 20} MiB are allowed")


def _links(version: Path) -> Iterator[Path]:
    """The version and its task, which may be links, and every link in it."""
    yield version
    for folder, folders, files in os.walk(version):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            if os.path.islink(path):
                yield Path(path)


def is_inside(real: AnyStr, roots: Sequence[AnyStr]) -> bool:
    """Whether a real path is one of these, or lies in one."""
    return any(real == root or real.startswith(os.path.join(root, root[:0])) for root in roots)
