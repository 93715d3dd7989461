"""A row's cells as an item of a task's input, or what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmplex.data.stream import Source
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.spec import Input


def columns_for(source: Source, reads: Input, named: str, size: int | None) -> list[str]:
    """The columns that make an item; raises TaskProblem.

    Args:
        named: by the caller, comma-separated where an item takes several; "" for the default.
        size: the numbers of an item, where that is fixed.
    """
    if source.plain:
        return source.columns
    if reads.columns == "one":
        chosen = [named or reads.default_column]
    else:
        chosen = [name.strip() for name in named.split(",") if name.strip()] or source.columns
    missing = [name for name in chosen if name not in source.columns]
    if missing and source.columns:
        raise TaskProblem(
            f"{source.name} has no column {missing[0]!r}, but {', '.join(source.columns)}. "
            "Name the right one with --column"
        )
    if reads.columns == "several" and size is not None and len(chosen) != size:
        raise TaskProblem(
            f"the task reads {size} numbers, {', '.join(chosen)} are {len(chosen)} columns. "
            "Name the right ones with --column a,b,..."
        )
    return chosen


def located(cell: Any, reads: Input, folder: Path | None) -> Any:
    """A table's cell; one that names a file may do so from the folder of the table."""
    if folder is None or not reads.files or not isinstance(cell, str) or not (folder / cell).is_file():
        return cell
    return folder / cell


def item_of(cells: Mapping[str, Any], columns: Sequence[str], reads: Input, folder: Path | None = None) -> Any:
    """Raises ValueError, which says what is wrong.

    Args:
        folder: of the table, from which it may name files.
    """
    values = [cells.get(name) for name in columns]
    for name, value in zip(columns, values, strict=True):
        if value is None or (isinstance(value, str) and not value.strip()):
            raise ValueError(f"{name!r} is empty")
        if isinstance(value, str):
            _check_text(name, value)
    try:
        if reads.columns == "several" and len(values) == 1 and isinstance(values[0], str):
            return reads.parse(values[0])  # a line with all of them
        return reads.item(located(values[0], reads, folder) if reads.columns == "one" else values)[0]
    except (TaskProblem, ValueError) as error:
        raise ValueError(str(error).partition(". ")[0]) from None


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name!r} is not valid UTF-8") from None
