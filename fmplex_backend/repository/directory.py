"""A model's directory as a whole: what tells whether it has changed, and what a controller leaves in it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fmplex_backend.repository.loadable import MOST_ENTRIES

ERROR_FILE = "ERROR.txt"  # why the directory is not loaded: written and removed by a controller
UNLOADED = "UNLOADED"  # an empty file of this name keeps a model unloaded


def set_unloaded(directory: Path, unloaded: bool) -> bool:
    """Put the file UNLOADED into a model's directory, or remove it; whether that changed anything. Raises OSError."""
    marker = directory / UNLOADED
    if marker.exists() == unloaded:
        return False
    if unloaded:
        # A link that leads nowhere is not followed: the file would come into being elsewhere.
        os.close(os.open(marker, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
    else:
        marker.unlink(missing_ok=True)
    return True


def fingerprint(directory: Path) -> str:
    """A digest of names, sizes and times of all files, which changes with every write; raises OSError.

    Hidden files and ERROR.txt stand outside of it. Links to directories are not followed. Of more files than a model
    may have, those beyond are left out.
    """
    digest, seen, left = hashlib.blake2b(digest_size=16), 0, [str(directory)]
    while left and seen <= MOST_ENTRIES:
        folder = left.pop()
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.name.startswith(".") or (entry.name == ERROR_FILE and folder == str(directory)):
                continue
            seen += 1
            digest.update(f"{entry.path}\0{_state(entry)}\0".encode("utf-8", "surrogateescape"))
            if entry.is_dir(follow_symlinks=False):
                left.append(entry.path)
    return digest.hexdigest()


def _state(entry: os.DirEntry[str]) -> str:
    try:
        status = os.stat(entry.path)
    except OSError:  # removed meanwhile, or a link that leads nowhere
        return "?"
    if entry.is_dir(follow_symlinks=False):
        return f"{status.st_ino}"  # its time changes with hidden files, too
    return f"{status.st_mtime_ns} {status.st_size} {status.st_ino}"
