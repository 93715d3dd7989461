"""The header of a safetensors file: what it holds, known before any of it takes memory. Imports no torch.

A header is a few kilobytes that may promise terabytes, so the shapes that a backbone and a task need are compared with
the header, and only a file that agrees is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from fmplex_backend.errors import TaskRefused
from fmplex_backend.files import open_regular, refused

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_HEADER = 2 << 20  # bytes of a task's file; 10,000 tensors take about one MiB
MAX_NAME = 1_000  # characters of a tensor's name
MAX_DIMS = 64  # torch has no more
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes of a number
OTHERS = {"C64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
SIZES = FLOATS | OTHERS
NAMED = 8  # names of tensors that a message lists at most


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as the header describes it; it lies in the bytes [start, end) after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


Header = Mapping[str, StoredTensor]
Check = Callable[[Header], None]  # raises TaskRefused where the tensors are not those that are wanted


class Shaped(Protocol):
    """A tensor, stored or read."""

    @property
    def shape(self) -> Iterable[int]: ...


def parse_header(stream: BinaryIO, most: int = MAX_HEADER) -> tuple[int, dict[str, StoredTensor]]:
    """How many bytes the header takes, `most` at most, and its tensors by name, sorted; raises ValueError."""
    front = stream.read(8)
    length = int.from_bytes(front, "little")
    if len(front) < 8:
        raise ValueError("it is empty")
    if length > most:
        raise ValueError(f"its header would take {length} bytes, {most} at most")
    text = stream.read(length)
    if len(text) < length:
        raise ValueError("it ends in the header")
    try:
        document = json.loads(text, object_pairs_hook=_without_repetition)
        document.pop("__metadata__", None)
        return 8 + length, {name: _stored(document[name]) for name in sorted(document)}
    except (AttributeError, KeyError, RecursionError, TypeError) as error:
        raise ValueError(f"its header is not as it should be: {type(error).__name__}: {error}") from None


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("its header holds one name twice")
    if any(len(name) > MAX_NAME for name in document):
        raise ValueError(f"its header holds a name of more than {MAX_NAME} characters")
    return document


def _stored(described: Mapping[str, Any]) -> StoredTensor:
    shape, (start, end), dtype = tuple(described["shape"]), described["data_offsets"], str(described["dtype"])
    if len(shape) > MAX_DIMS or not all(type(each) is int and 0 <= each < 1 << 63 for each in (*shape, start, end)):
        raise ValueError("its header holds a shape or an offset that no tensor has")
    if len(dtype) > MAX_NAME:
        raise ValueError("its header holds a dtype that no tensor has")
    return StoredTensor(dtype, shape, start, end)


def read_header(file: Path) -> Header:
    """The header of a file whose size is as the header says; raises TaskRefused."""
    try:
        with open_regular(file) as stream:
            return _agreeing(stream)[1]
    except (OSError, ValueError) as error:
        raise unreadable(file, error) from None


def read_content(file: Path, check: Check) -> tuple[Header, npt.NDArray[np.uint8]]:
    """The header of a file and the bytes after it, read once its size is as the header says and `check` has passed.

    Raises TaskRefused.
    """
    import numpy as np

    try:
        with open_regular(file) as stream:
            length, header = _agreeing(stream)
            check(header)
            stream.seek(length)
            content = np.fromfile(stream, dtype=np.uint8, count=_size(header))
            if len(content) < _size(header):
                raise ValueError("it was cut short while it was read")
            return header, content
    except (OSError, ValueError) as error:
        raise unreadable(file, error) from None


def _agreeing(stream: BinaryIO) -> tuple[int, Header]:
    """How many bytes the header takes, and its tensors; raises ValueError where they do not fill the file."""
    length, header = parse_header(stream)
    for name, tensor in header.items():
        size = SIZES.get(tensor.dtype)
        if size is not None and tensor.end - tensor.start != math.prod(tensor.shape) * size:
            raise ValueError(f"the shape of {name} is not that of its bytes")
    wanted, have = length + _size(header), stream.seek(0, 2)
    if have != wanted:
        raise ValueError(f"it has {have} bytes, its header says {wanted}")
    return length, header


def _size(header: Header) -> int:
    return max((tensor.end for tensor in header.values()), default=0)


def unreadable(file: Path, error: OSError | ValueError) -> TaskRefused:
    """The refusal of a file that cannot be opened, or is not as the format wants it."""
    if isinstance(error, OSError):
        return refused(file, error, missing="Copy it into the version directory")
    problem = f"not readable as safetensors: {error}"
    return TaskRefused(file, "(whole file)", problem, "Copy it again: it may be cut short")


def expect_names(file: Path, header: Header, names: Collection[str], part: str) -> None:
    """Raise TaskRefused where the tensors of a file are not exactly those of these names."""
    if header.keys() != set(names):
        raise TaskRefused(
            file,
            some(header.keys() ^ set(names)),
            f"{part} has the tensors {some(names)}, the file {some(header) or 'none'}",
            "Save the task again",
        )


def expect_name(file: Path, header: Header, name: str) -> None:
    """Raise TaskRefused where there is no tensor of that name."""
    if name not in header:
        problem = f"there is no such tensor, but {some(header) or 'none'}"
        raise TaskRefused(file, name, problem, f"Save the decoder's {name} under that name")


def expect_floats(file: Path, header: Header) -> None:
    """Raise TaskRefused where a tensor holds anything but numbers of floating point in a usual format."""
    for name, tensor in header.items():
        expect_dtype(file, name, tensor, FLOATS)


def expect_dtype(file: Path, name: str, tensor: StoredTensor, dtypes: Collection[str]) -> None:
    """Raise TaskRefused where a tensor is not of one of these dtypes."""
    if tensor.dtype not in dtypes:
        wanted = " or ".join(dtypes)
        raise TaskRefused(
            file, name, f"it holds {tensor.dtype}, not {wanted}", "Save it with that dtype: numbers are not guessed at"
        )


def expect_shape(file: Path, name: str, tensor: Shaped, shape: tuple[int, ...], of: str) -> None:
    """Raise TaskRefused where a tensor has another shape than `shape` (-1: any)."""
    have = tuple(tensor.shape)
    if len(have) != len(shape) or any(want not in (-1, size) for want, size in zip(shape, have, strict=True)):
        raise TaskRefused(
            file,
            name,
            f"its shape is {list(have)}, {of} needs {list(shape)}",
            "Was it trained for this backbone and these labels?",
        )


def some(names: Iterable[str]) -> str:
    """Names for a message: a file may hold thousands."""
    ordered = sorted(names)
    more = f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    return ", ".join(ordered[:NAMED]) + more
