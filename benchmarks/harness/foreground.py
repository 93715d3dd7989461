"""`fmplex serve` for a benchmark."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from testing.serve_command import ServeCommand, serve_command


@contextlib.contextmanager
def foreground(repository: Path) -> Iterator[ServeCommand]:
    """For as long as the block lasts, with records of its own; an error in the block shows the end of the log."""
    with tempfile.TemporaryDirectory() as folder:
        records = ["--no-api", "--records", str(Path(folder, "records"))]
        with serve_command(repository, Path(folder), *records) as command:
            try:
                yield command
            except Exception as error:
                raise RuntimeError(f"{error}. Its log ends with:\n{command.log_tail()}") from error
