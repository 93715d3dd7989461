"""Results drawn beside their inputs, by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmplex_backend.decoders.results import Result
from fmplex_backend.errors import TaskProblem

SUFFIXES = (".pdf", ".png", ".svg")
SIZE = (9.0, 3.2)  # inches, of a result


def draw(file: Path, items: Sequence[Any], found: Sequence[Result], after: Sequence[Any]) -> None:
    """One below the other; raises TaskProblem.

    Args:
        after: of each item what came after it, or None.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise TaskProblem(f"{file}: pictures are {', '.join(SUFFIXES)} files. Name one of these")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise TaskProblem("--plot needs matplotlib: pip install 'fmplex[train]'") from None
    figure = Figure(figsize=(SIZE[0], SIZE[1] * len(items)), layout="constrained")
    every = figure.subplots(len(items), 1, squeeze=False)[:, 0]
    for axes, item, each, behind in zip(every, items, found, after, strict=True):
        if not each.draw(axes, item, behind):
            raise TaskProblem(f"a result of this kind ({type(each).__name__}) has no picture. Leave --plot out")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper left", fontsize="small")
    try:
        figure.savefig(file)
    except OSError as error:
        raise TaskProblem(f"{file} cannot be written: {error.strerror}. Name another place") from None
