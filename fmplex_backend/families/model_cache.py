"""FMplex's own cache of models in transformers' form, outside every repository. Imports no torch."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = re.compile(r"\w[\w.+-]*")


def cache_directory() -> Path:
    """Where converted models are kept."""
    root = os.environ.get("FMPLEX_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "fmplex")
    return Path(root).expanduser() / "models"


def cached_place(name: str) -> Path:
    """The directory that `cache:<name>` names, whether it is there or not; raises ValueError."""
    if not NAME.fullmatch(name):
        raise ValueError(f"cache: wants a name without slashes, such as cache:dinov2-small; it has {name!r}")
    return cache_directory() / name


def is_whole(directory: Path) -> bool:
    """Whether a model is there: its config.json comes last, see `filling`."""
    return (directory / "config.json").is_file()


def check_free(directory: Path) -> None:
    """Raise ValueError where there is something that `filling` would mix a model with."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} is there already, and not empty. Name another directory, or remove it")


@contextmanager
def filling(directory: Path) -> Iterator[Path]:
    """A folder to save a model into, whose files then go into `directory`, config.json last.

    Others that read or fill the directory meanwhile find it without a model, or with a whole one: files are moved over
    those that are there. Where saving it raises, nothing goes in.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".filling-", dir=directory) as folder:
        aside = Path(folder, "model")  # with the usual mode, which the temporary directory has not
        aside.mkdir()
        yield aside
        for file in sorted(aside.iterdir(), key=lambda file: file.name == "config.json"):
            file.replace(directory / file.name)
