"""The inputs of text encoders: TEXT, and FEATURES (rows of numbers)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.strings import StringInput
from fmplex_backend.interface import TensorSpec


class TextInput(StringInput):
    """TEXT [1], a string. A text may be given as a list of words, whose character ranges are then kept."""

    tensor = TensorSpec("TEXT", "TYPE_STRING", (1,))

    def item(self, cell: Any) -> tuple[str, list[tuple[int, int]]]:
        if isinstance(cell, str):
            return cell, []
        if not isinstance(cell, (list, tuple, np.ndarray)):
            raise ValueError(f"{cell!r} is not a text. Turn it into one, or leave the row out")
        if not all(isinstance(word, str) for word in cell):
            raise ValueError("some texts are words, this one is not. Give all as lists of words")
        places, start = [], 0
        for word in cell:
            places.append((start, start + len(word)))
            start += len(word) + 1
        return " ".join(cell), places

    def probe(self, size: int | None) -> str:
        return "a short text"


class NumbersInput:
    """FEATURES [f], float32: a row of numbers."""

    tensor = TensorSpec("FEATURES", "TYPE_FP32", (-1,))
    columns: Literal["one", "several"] = "several"
    default_column = ""
    files: Sequence[str] = ()

    def is_item(self, data: Any) -> bool:
        return False

    def item(self, cell: Any) -> tuple[list[float], list[tuple[int, int]]]:
        try:
            return [float(number) for number in cell], []
        except (TypeError, ValueError):
            raise ValueError(
                f"{cell!r} is not a row of numbers. Correct it, or name the columns with text=[...]"
            ) from None

    def array(self, items: Sequence[Any]) -> npt.NDArray[Any]:
        """[n, f]."""
        try:
            numbers = np.array(items, dtype=np.float32)
        except (TypeError, ValueError):
            numbers = np.empty(0, dtype=np.float32)
        if numbers.ndim != 2:
            raise TaskProblem(
                "the task reads rows of numbers, all of one length. Give a list of them, e.g. [[0.5, 12.0]]"
            )
        return numbers

    def parse(self, argument: str) -> list[float]:
        try:
            return [float(number) for number in argument.split(",")]
        except ValueError:
            raise TaskProblem(
                f"{argument!r} is not a row of numbers, which the task reads. Give e.g. 0.5,12,3"
            ) from None

    def show(self, item: Any) -> str:
        return ",".join(f"{number:g}" for number in item)

    def probe(self, size: int | None) -> list[float]:
        return [0.0] * (size or 1)


TEXT, FEATURES = TextInput(), NumbersInput()
