"""Whether two versions of a task give the same answer: the comparisons that decoder kinds choose from.

Each takes the same tensor of both versions' answers to the same n items, and tells of each item, [n].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Tensor = npt.NDArray[Any]
Agreed = npt.NDArray[np.bool_]


def equal(one: Tensor, other: Tensor) -> Agreed:
    """Items whose values are all equal: strings [n, ...], whole numbers. Rows of labels may end in any number of ""."""
    return _by_item(one, other, lambda a, b: _values(a) == _values(b))


def same_set(one: Tensor, other: Tensor) -> Agreed:
    """Items with the same labels, in whatever order; "" is none."""
    return _by_item(one, other, lambda a, b: set(_values(a)) - {b""} == set(_values(b)) - {b""})


def near(one: Tensor, other: Tensor, tolerance: float) -> Agreed:
    """Items whose numbers a and b all differ by at most tolerance * max(1, |a|, |b|)."""

    def is_near(a: Tensor, b: Tensor) -> bool:
        if a.shape != b.shape:
            return False
        a, b = a.astype(np.float64), b.astype(np.float64)
        return bool(np.all(np.abs(a - b) <= tolerance * np.maximum(1.0, np.maximum(np.abs(a), np.abs(b)))))

    return _by_item(one, other, is_near)


def alike(one: Tensor, other: Tensor, tolerance: float) -> Agreed:
    """Items whose vectors have a cosine of at least 1 - tolerance, whatever their lengths."""

    def is_alike(a: Tensor, b: Tensor) -> bool:
        if a.shape != b.shape:
            return False
        a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        return float(a @ b) >= (1 - tolerance) * lengths if lengths else not a.any() and not b.any()

    return _by_item(one, other, is_alike)


def _by_item(one: Tensor, other: Tensor, agree: Callable[[Tensor, Tensor], bool]) -> Agreed:
    return np.array([agree(a, b) for a, b in zip(one, other, strict=True)], dtype=np.bool_)


def _values(item: Tensor) -> list[Any]:
    values = [value.encode() if isinstance(value, str) else value for value in np.asarray(item).ravel().tolist()]
    while values and values[-1] == b"":
        values.pop()
    return values
