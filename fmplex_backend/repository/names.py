"""Names of directories that cannot be a model's."""

from __future__ import annotations

from pathlib import Path

from fmplex_backend.errors import TaskRefused


def check_name(root: Path, name: str) -> None:
    """Raise TaskRefused where a directory's name cannot be a model's: no client could send it."""
    try:
        name.encode("utf-8", "surrogateescape").decode("utf-8")  # of its bytes, whatever Python decoded them by
    except UnicodeError:
        problem = "it is not UTF-8, as the names of models are"
        raise TaskRefused(root / name, "(name)", problem, "Rename the directory") from None
    if name == "*":
        raise TaskRefused(root / name, "(name)", "it stands for all models", "Rename the directory")
