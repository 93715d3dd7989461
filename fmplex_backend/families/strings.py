"""What inputs have in common whose items are strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fmplex_backend.errors import TaskProblem


class StringInput:
    """A tensor [1] of strings, one an item. A subclass names the tensor, reads tables' cells and has a probe."""

    columns: Literal["one", "several"] = "one"
    default_column = "text"
    files: Sequence[str] = ()

    def is_item(self, data: Any) -> bool:
        return isinstance(data, str)

    def array(self, items: Sequence[Any]) -> npt.NDArray[Any]:
        """[n, 1]."""
        odd = [item for item in items if not isinstance(item, str)]
        if odd:
            raise TaskProblem(f"the task reads texts, not {odd[0]!r}. Give one text or a list of them")
        return np.array([text.encode() for text in items], dtype=np.object_)[:, None]

    def parse(self, argument: str) -> str:
        return argument

    def show(self, item: Any) -> str:
        return " ".join(str(item).split())
