"""Pictures of results, as SVG files that are byte for byte the same for the same rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

RESULTS = Path("benchmarks/results")
COLOURS = {
    "bfq": "#0b6e4f",
    "fifo": "#c44536",
    "stfq": "#7a5c99",
    "per-task": "#e09f3e",
    "partitioned": "#577590",
    "single": "#888888",
    "bare": "#222222",
}


def picture(
    name: str, draw: Callable[[Any], None], *, columns: int = 1, width: float = 4.6, height: float = 3.4
) -> None:
    """Write results/NAME.svg; `draw` gets the axes (an array of them where there are several)."""
    mpl.use("svg")
    style: Any = {"svg.hashsalt": name, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
    with mpl.rc_context(style):
        figure, axes = plt.subplots(1, columns, figsize=(width * columns, height), constrained_layout=True)
        draw(axes)
        RESULTS.mkdir(exist_ok=True)
        figure.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


def target_line(axes: Any, value: float, label: str) -> None:
    """A dashed line where the target lies."""
    axes.axhline(value, color="#555555", linewidth=0.8, linestyle="--", label=label)
