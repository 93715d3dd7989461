"""The loss curves of a fitting, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmplex.training.state import History


def draw(history: History, file: Path) -> None:
    """Write the losses of steps and epochs as a PNG; nothing without matplotlib, which is an optional dependency."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    steps, epochs = len(history.steps), max(1, len(history.training))
    ends = [steps * (epoch + 1) / epochs for epoch in range(epochs)]
    axes.plot(range(1, steps + 1), history.steps, color="#9db4c0", linewidth=0.8, label="step")
    axes.plot(ends, history.training, "o-", color="#0b6e4f", label="epoch, training")
    if history.validation:
        axes.plot(ends[: len(history.validation)], history.validation, "s-", color="#c44536", label="epoch, validation")
    if history.head_only is not None:
        axes.axhline(history.head_only, color="#555555", linestyle=":", linewidth=0.8, label="head alone, validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend(fontsize=8)
    figure.savefig(file, format="png")
