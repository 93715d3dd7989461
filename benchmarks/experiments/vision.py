"""Vision encoders: DINOv2-small (float32, 224 x 224), from JPEG files of 500 x 375 pixels, Bmax 8.

Memory is of a server with ten LoRA tasks against one with one, as in `memory`. Ten tasks with heads of several kinds,
and ten with LoRA, take turns with two bare loops: transformers' own forward of tensors that are ready, on the
backbone's core while the server is idle, and the same loop with the preparing of each input in it. The second is the
most that a server can reach whose inputs are prepared on the backbone's core, as here; the targets are parts of the
first. Closed loop, batches of the bare loops as large as Bmax; the backbone's process on one core, Triton and the
clients on the other. Shares are the seconds that two backlogged tasks of weights 3:1 have received by the backbone's
account, those of preparing included.
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
