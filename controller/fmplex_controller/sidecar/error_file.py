"""ERROR.txt: why a directory is not loaded, for whoever looks into it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fmplex_backend.files import read_text
from fmplex_backend.printable import printable
from fmplex_backend.repository.directory import ERROR_FILE

FRONT = "This directory is not served, or not as it is now:\n\n"
BACK = "\n\nThis file goes away by itself once that is mended and the directory has been loaded.\n"


def error_in(directory: Path) -> str:
    """What the file says, "" where there is none; of one that somebody else wrote, all of it."""
    try:
        text = read_text(directory / ERROR_FILE, errors="replace")
    except OSError:
        return ""
    return text.removeprefix(FRONT).removesuffix(BACK)


def write_error(directory: Path, text: str) -> None:
    """Write the file at once as a whole; raises OSError where the directory cannot be written to."""
    aside = directory / f".{ERROR_FILE}.{os.getpid()}"
    try:
        aside.unlink(missing_ok=True)  # a link there could lead anywhere
        with aside.open("x", encoding="utf-8") as file:
            file.write(f"{FRONT}{printable(text)}{BACK}")
        aside.replace(directory / ERROR_FILE)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def remove_error(directory: Path) -> None:
    """Remove the file; raises OSError."""
    (directory / ERROR_FILE).unlink(missing_ok=True)
