"""What Triton must not be let near: directories that end the server, or stop it for good, when it reads them.

Found by trying each on tritonserver 2.51. Whoever starts a server, or asks one to load a model, checks its directory
first.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fmplex_backend.errors import TaskRefused
from fmplex_backend.files import open_regular, read_text, refused
from fmplex_backend.repository.tasks import CONFIG
from fmplex_backend.repository.versions import LARGEST_VERSION

MOST_ENTRIES = 10_000  # of a model's directory, links followed as Triton follows them
_NUMBER = re.compile(r"[+-]?\d+")  # what C++'s stoll makes a number of


def check_loadable(directory: Path) -> None:
    """Raise TaskRefused where loading this model would end tritonserver, or keep it from ever loading another."""
    _check_versions(directory)
    file = directory / CONFIG
    _check_regular(file, file, "(whole file)")
    for field, named in _named_files(file):
        _check_regular(file, named, field)
    _check_size(directory)


def _check_versions(directory: Path) -> None:
    for name in os.listdir(directory):
        number = _NUMBER.match(name)
        if number and abs(int(number.group())) > LARGEST_VERSION and (directory / name).is_dir():
            raise TaskRefused(
                directory / name,
                "(directory)",
                f"as a version it is beyond {LARGEST_VERSION}, and Triton ends when it reads such a number",
                "Rename it, or move it away",
            )


def _check_regular(config: Path, named: Path, field: str) -> None:
    """A directory in the place of a file ends Triton; a FIFO, or a file without end, holds up all loads for good."""
    try:
        open_regular(named).close()
        if named == config:
            read_text(named, errors="replace")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # Triton says so itself, of this model alone
    except OSError as error:
        problem = refused(named, error, missing="")
        place = "" if named == config else f"{named}: "
        raise TaskRefused(config, field, f"{place}{problem.problem}", "Put a regular file there") from None


def _named_files(config: Path) -> Iterator[tuple[str, Path]]:
    """Every file that a config names, with the field that does."""
    try:
        text = read_text(config, errors="replace")
    except OSError:
        return
    if "_file" not in text:  # spares parsing: no other field names a file that Triton opens itself
        return
    proto = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text, proto, allow_unknown_field=True)
    except (text_format.ParseError, RecursionError):
        return  # nor can Triton read it
    directory = config.parent
    for output in proto.output:
        if output.label_filename:
            yield f"output.{output.name}.label_filename", directory / output.label_filename
    yield from _data_files(proto, directory)


def _data_files(proto: Any, directory: Path) -> Iterator[tuple[str, Path]]:
    for sample in proto.model_warmup:
        for name, given in sample.inputs.items():
            if given.input_data_file:
                yield f"model_warmup.inputs.{name}", directory / "warmup" / given.input_data_file
    for state in proto.sequence_batching.state:
        for initial in state.initial_state:
            if initial.data_file:
                yield f"sequence_batching.state.{state.input_name}", directory / "initial_state" / initial.data_file


def _check_size(directory: Path) -> None:
    """Triton looks through all of a model's directory before it loads it. Links that lead back never end."""
    left, seen = [str(directory)], 0
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if _is_directory(entry):
                        left.append(entry.path)
                    if seen > MOST_ENTRIES:
                        raise TaskRefused(
                            directory,
                            "(directory)",
                            f"it leads to more than {MOST_ENTRIES} files and directories, all of which Triton looks "
                            "through before it loads a model",
                            "Remove links to directories, and what the model does not need",
                        )
        except OSError:
            continue


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return stat.S_ISDIR(os.stat(entry.path).st_mode)
    except OSError:
        return False
