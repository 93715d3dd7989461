"""Vision encoders: DINOv2-small (float32, 224 x 224), from JPEG files of 500 x 375 pixels, Bmax 8.

Memory of ten tasks against one, ten tasks against the bare backbone, fair shares: see `families`.
"""

from __future__ import annotations

from typing import Any

from benchmarks.experiments.families import measure, show
from benchmarks.harness.families import VISION

__all__ = ["run", "show"]


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row for each figure."""
    return measure(VISION, quick=quick)


if __name__ == "__main__":
    show(run())
