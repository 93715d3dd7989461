"""The versions of a task: which there are, which is served, and how one that was changed is told from what was read."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmplex_backend.errors import TaskRefused

LARGEST_VERSION = 2**63 - 1  # Triton's versions are 64-bit numbers
MOST_FILES = 1000  # of a version
MISSING = "there is no such version directory"
# Of a whole file system, or of this process, and not of one entry: a task is not to be refused for these.
PASSING = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

Signature = tuple[tuple[str, int, int], ...]  # (file, mtime_ns, size in bytes) of each file of a version


@dataclass(frozen=True, slots=True)
class Version:
    """A version directory, and a signature of its files."""

    number: int
    path: Path
    signature: Signature

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(size for _, _, size in self.signature)

    def intact(self) -> bool:
        """Whether its files are still those that were read."""
        try:
            return is_directory(self.path) and _signature(self.path) == self.signature
        except (OSError, TaskRefused):
            return False


def served_version(file: Path, proto: Any) -> Version:
    """The version that Triton serves under the entry's version policy, which must leave just one."""
    directory = file.parent
    policy = proto.version_policy.WhichOneof("policy_choice")
    wanted = list(proto.version_policy.specific.versions)
    several = policy == "all" or (policy == "latest" and proto.version_policy.latest.num_versions > 1)
    if several or len(wanted) > 1:
        raise TaskRefused(
            file,
            "version_policy",
            "it serves several versions, but a tag stands for one",
            "Leave it out (the highest number is served) or name one specific version",
        )
    there = version_numbers(directory)
    served = (wanted or there[-1:] or [1])[0]
    if wanted and there and served not in there:
        remedy = f"Put it back, or serve another one: fmplex task rollback {directory.name} --to {there[-1]}"
        raise TaskRefused(directory / str(served), "(directory)", MISSING, remedy)
    return _version(directory, served, there)


def version_at(directory: Path, number: int) -> Version:
    """A version of a model's directory; raises TaskRefused where there is no such one."""
    return _version(directory, number, version_numbers(directory))


def _version(directory: Path, number: int, there: Sequence[int]) -> Version:
    path = directory / str(number)
    if number not in there:
        raise TaskRefused(path, "(directory)", MISSING, "Put task.json and weights there")
    return Version(number, path, _signature(path))


def version_numbers(directory: Path) -> list[int]:
    """Of a model's directory, the versions that Triton sees: neither 01, nor ², nor what has more than 64 bits."""
    names = (name for name in os.listdir(directory) if name.isascii() and name.isdigit() and str(int(name)) == name)
    return sorted(int(name) for name in names if int(name) <= LARGEST_VERSION and is_directory(directory / name))


def is_directory(path: Path) -> bool:
    """Raises OSError where that may pass."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        if error.errno in PASSING:
            raise
        return False


def _signature(path: Path) -> Signature:
    """Links stand in it too: a file that takes a link's place is another one, of the same time and size or not.

    Raises TaskRefused where there are more files than a version has.
    """
    above = [link for link in (path.parent, path) if link.is_symlink()]
    found: list[tuple[str, int, int]] = [(f"{link} -> {os.readlink(link)}", 0, 0) for link in above]
    for file in files_below(path):
        name = str(file.relative_to(path))
        try:
            status = file.stat()
            if file.is_symlink():
                found.append((f"{name} -> {os.readlink(file)}", 0, 0))
        except OSError as error:
            if error.errno in PASSING:
                raise
            continue  # removed while being read: the watcher reads the task again
        found.append((name, status.st_mtime_ns, status.st_size))
        if len(found) > MOST_FILES:
            raise TaskRefused(
                path, "(directory)", f"it holds more than {MOST_FILES} files", "Put there what the task needs, no more"
            )
    return tuple(sorted(found))


def files_below(path: Path) -> Iterator[Path]:
    """Everything below a directory; links to directories are not followed, they may lead anywhere."""
    left = [path]
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    yield Path(entry.path)
                    if entry.is_dir(follow_symlinks=False):
                        left.append(Path(entry.path))
        except OSError as error:
            if error.errno in PASSING:
                raise
            continue  # removed meanwhile, closed to us, or nested deeper than a path can name
