"""Files of a model repository, which anybody may have put there: only regular ones are opened, none is read unbounded.

A FIFO blocks whoever opens it for good, and a device or a sparse file may have any size. Names that no file system can
hold (a zero byte, more than 255 bytes, half a surrogate pair) are an OSError here, as a missing file is.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, Literal

from fmplex_backend.confinement import check_opened
from fmplex_backend.errors import TaskRefused

TEXT_BYTES = 16 << 20  # config.pbtxt and JSON; 100,000 labels of 100 bytes are 10 MB

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def native(text: str) -> str:
    """A path as this process's `os` takes it: Triton runs Python with ASCII as the encoding of file names.

    UTF-8 in a path that comes from elsewhere (a setting, a report of a change) is then what listing a directory gives.
    """
    try:
        return os.fsdecode(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:  # half a surrogate pair: no file can have this name, `open_regular` says so
        return text


def open_regular(file: Path) -> BinaryIO:
    """Open a file for reading, without waiting for anyone; raises OSError where it is not a regular file."""
    try:
        descriptor = os.open(native(str(file)), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except ValueError as error:  # a zero byte, or characters that the file system's encoding does not have
        raise OSError(errno.EINVAL, f"no file can have this name ({error})") from None
    try:
        status = os.fstat(descriptor)
        kind = stat.S_IFMT(status.st_mode)
        if kind != stat.S_IFREG:
            raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'something else')}, not a regular file")
        check_opened(descriptor, status.st_size)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_text(file: Path, most: int = TEXT_BYTES, errors: Literal["strict", "replace"] = "strict") -> str:
    """The text of a regular UTF-8 file of at most `most` bytes; raises OSError or UnicodeDecodeError (a ValueError)."""
    with open_regular(file) as stream:
        content = stream.read(most + 1)  # not by its size: a file in /proc has none, another may be growing
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MiB")
    return content.decode("utf-8", errors)


def read_json(file: Path, most: int = TEXT_BYTES) -> Any:
    """What a JSON file holds; raises OSError, or ValueError where it is not JSON that has one meaning only."""
    try:
        document = json.loads(read_text(file, most), object_pairs_hook=_without_duplicates)
        # Python's parser takes halves of surrogate pairs, which are no text: nothing could write them anywhere.
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("a string in it has half a surrogate pair (\\ud800 to \\udfff)") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return document


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ValueError(f"the name {twice[:80]!r} stands twice in one object")
    return found


def refused(file: Path, error: OSError, *, missing: str) -> TaskRefused:
    """The refusal of a task for a file that could not be read.

    Args:
        missing: the remedy where there is no such file.
    """
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return TaskRefused(file, "(whole file)", "there is no such file", missing)
    reason = error.strerror or str(error)
    if isinstance(error, PermissionError):
        return TaskRefused(file, "(whole file)", f"it cannot be read: {reason}", "Let the server's user read it")
    return TaskRefused(file, "(whole file)", f"it cannot be read: {reason}", "Put a regular file there")
