"""A picture, a clip: in whatever form it was given, a file, the bytes of one, or an array."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy.typing as npt

from fmplex_backend.errors import TaskProblem


class Given(ABC):
    """Files are read when they are needed, and not kept. Two are equal where they hold the same.

    Args:
        source: a file, the bytes of one, or the values themselves.
    """

    noun: str  # what people call it, e.g. "picture"

    def __init__(self, source: Path | bytes | npt.NDArray[Any]) -> None:
        self.source = source

    def __str__(self) -> str:
        """A key of what it holds: of a file path, size and date, else a digest."""
        if isinstance(self.source, Path):
            status = self.source.stat()
            return f"{self.source} {status.st_size} {status.st_mtime_ns}"
        return self._digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    @cached_property
    def _digest(self) -> str:
        held = self.content() if isinstance(self.source, (bytes, Path)) else self._hashed(self.source)
        return sha256(held).hexdigest()

    @property
    def name(self) -> str:
        """In a line, for people."""
        if isinstance(self.source, Path):
            return str(self.source)
        if isinstance(self.source, bytes):
            return f"a {self.noun} of {len(self.source):,} bytes"
        return f"a {self.noun} of {self._measure(self.source)}"

    def content(self) -> bytes:
        """The bytes of a file; raises TaskProblem, and as a family's `_encoded` does."""
        if isinstance(self.source, bytes):
            return self.source
        if isinstance(self.source, Path):
            try:
                return self.source.read_bytes()
            except OSError as error:
                raise TaskProblem(f"{self.source} cannot be read: {error.strerror}. Correct the path") from None
        return self._encoded(self.source)

    # -- the family's, of values

    @abstractmethod
    def _hashed(self, values: npt.NDArray[Any]) -> bytes:
        """The bytes to be hashed."""

    @abstractmethod
    def _measure(self, values: npt.NDArray[Any]) -> str:
        """How large they are, for people."""

    @abstractmethod
    def _encoded(self, values: npt.NDArray[Any]) -> bytes:
        """As a file."""
