"""Tables in plain text: for a terminal as many columns as fit, for a pipe all of them, separated by tabs."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping, Sequence

from rich.cells import cell_len

GAP = 2
Row = Mapping[str, str]


def show(rows: Sequence[Row], columns: Sequence[str], first_to_go: Sequence[str]) -> None:
    """Print a table on stdout.

    Args:
        columns: their titles, in order.
        first_to_go: those that a narrow terminal does without, the most dispensable first.
    """
    if not sys.stdout.isatty():
        print(as_fields(rows, columns))
        return
    fitting = fitted(rows, columns, first_to_go, shutil.get_terminal_size().columns)
    print(as_table(rows, fitting))
    left_out = [column for column in columns if column not in fitting]
    if left_out:
        print(f"({', '.join(left_out)}: in a wider terminal, in a pipe, or with --json)")


def as_fields(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Tabs between columns, and no blank in any cell: both `cut -f` and `awk` take it as it is."""
    cells = [[re.sub(r"\s", "_", row[column]) for column in columns] for row in rows]
    return "\n".join("\t".join(line) for line in [list(columns), *cells])


def as_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Columns beside each other, each as wide as its widest cell."""
    widths = _widths(rows, columns)
    lines = [[*columns], *([row[column] for column in columns] for row in rows)]
    return "\n".join(
        "".join(cell + " " * (width - cell_len(cell) + GAP) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def fitted(rows: Sequence[Row], columns: Sequence[str], first_to_go: Sequence[str], width: int) -> list[str]:
    """The columns that fit into `width` characters with every cell whole; those not to go stay in any case."""
    left = list(columns)
    for column in first_to_go:
        if sum(_widths(rows, left)) + GAP * (len(left) - 1) <= width:
            break
        left.remove(column)
    return left


def _widths(rows: Sequence[Row], columns: Sequence[str]) -> list[int]:
    return [max(cell_len(text) for text in (column, *(row[column] for row in rows))) for column in columns]
