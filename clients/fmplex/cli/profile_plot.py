"""A profile as a picture: seconds by rows, a line for each length, and what the cost model makes of it."""

from __future__ import annotations

from pathlib import Path

from fmplex_backend.errors import TaskProblem
from fmplex_backend.profiles import Profile
from fmplex_backend.types import PassShape


def draw(profile: Profile, file: Path) -> None:
    """Write it as what the file's name ends with; raises TaskProblem without matplotlib, or where that cannot be."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise TaskProblem("a plot wants matplotlib. Install it: pip install matplotlib") from None
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes, cost = figure.add_subplot(), profile.cost()
    for length in sorted({round(point.tokens) for point in profile.points}):
        own = sorted((each for each in profile.points if round(each.tokens) == length), key=lambda each: each.rows)
        rows = [point.rows for point in own]
        (line,) = axes.plot(rows, [1e3 * point.seconds for point in own], "o-", label=f"{length} tokens")
        fitted = [1e3 * cost.predict(PassShape(count * length, length, 0)) for count in rows]
        axes.plot(rows, fitted, ":", color=line.get_color())
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("rows of the batch")
    axes.set_ylabel("ms (dotted: the cost model)")
    axes.set_title(f"{profile.model}, {profile.dtype}, {profile.hardware}", fontsize=8)
    axes.legend(fontsize=8)
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:  # a format that matplotlib does not have
        raise TaskProblem(f"{file} cannot be drawn: {error}. Name a file that ends with .svg or .png") from None
