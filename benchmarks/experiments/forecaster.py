"""Forecasters: Chronos-Bolt in the shapes of its tiny (9 million weights) and small (48 million) ones, Bmax 8.

As `vision`, with series of one channel and 2,048 steps, which are 129 tokens; the bare loop is the package's own
`encode`. Weights are random: what they cost does not depend on their values. It needs the extra `chronos-bolt`.
"""

from __future__ import annotations

from typing import Any

from benchmarks.experiments.families import measure
from benchmarks.experiments.families import show as show_family
from benchmarks.harness.families import FORECASTERS


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row for each figure of each model."""
    return [{"model": each.name} | row for each in FORECASTERS for row in measure(each, quick=quick)]


def show(rows: list[dict[str, Any]]) -> None:
    """Model by model."""
    for each in FORECASTERS:
        print(f"{each.name}:")
        show_family([row for row in rows if row["model"] == each.name])


if __name__ == "__main__":
    show(run())
