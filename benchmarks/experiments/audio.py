"""Audio encoders: an encoder of Whisper tiny.en's sizes (float32), from WAV files of 2 s, Bmax 32.

As `vision`. The encoder's weights are random: what they cost does not depend on their values.
"""

from __future__ import annotations

from typing import Any

from benchmarks.experiments.families import measure, show
from benchmarks.harness.families import AUDIO

__all__ = ["run", "show"]


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row for each figure."""
    return measure(AUDIO, quick=quick)


if __name__ == "__main__":
    show(run())
