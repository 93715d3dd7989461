"""The first line of a CSV or TSV file, which names its columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

SHOWN = 5  # cells


def check_csv_header(header: Sequence[str]) -> None:
    """Raise ValueError where it does not name columns, or some twice, so that data would be lost.

    pandas calls columns without names 0, 1, 2: such a header is one.
    """
    if not header:
        raise ValueError("it is empty, or its first line is. Let that name the columns")
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise ValueError(f"columns are named twice: {', '.join(map(repr, twice))}. Name each once in the first line")
    counted = len(header) > 1 and list(header) == [str(place) for place in range(len(header))]
    if all(map(_is_value, header)) and not counted:
        shown = ",".join(header[:SHOWN]) + (",..." if len(header) > SHOWN else "")
        raise ValueError(f"its first line, {shown}, names no columns. Put a line before it that names them")


def _is_value(cell: str) -> bool:
    """Whether it is a number, a date, or nothing."""
    for read in (float, datetime.fromisoformat):
        try:
            read(cell.strip())
        except ValueError:
            continue
        return True
    return not cell.strip()
