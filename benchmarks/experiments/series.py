"""Time series: the demo's PatchTST (303,852 weights), from series of 1 and of 32 channels, Bmax 32.

As `vision`. A series of one channel is a row of 0.3 ms, less than what a request costs beside its pass: reading and
answering it, on the same core. One of 32 channels is a batch by itself.
"""

from __future__ import annotations

from typing import Any

from benchmarks.experiments.families import measure, show
from benchmarks.harness.families import SERIES

__all__ = ["run", "show"]


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row for each figure."""
    return measure(SERIES, quick=quick)


if __name__ == "__main__":
    show(run())
