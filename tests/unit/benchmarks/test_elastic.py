"""When a load step is overcome, by the times that requests were due and took."""

from __future__ import annotations

import math

import pytest

from benchmarks.experiments.elastic import SLO_S, recovery


def timeline(late_until: float, *, stray: float = math.inf) -> list[tuple[float, float]]:
    """100 requests a second for 10 s, the step at 2 s; those due until then, and from `stray` on, are late."""
    due = [number / 100 for number in range(1000)]
    return [(at, 2 * SLO_S if 2 <= at < late_until or at >= stray else SLO_S / 2) for at in due]


def test_it_is_the_last_half_second_that_was_not_good_enough() -> None:
    assert recovery(timeline(2.0), 2.0, 10.0) == 0.0
    assert recovery(timeline(4.0), 2.0, 10.0) == pytest.approx(2.0, abs=0.11)
    assert recovery(timeline(2.02), 2.0, 10.0) == 0.0, "two of fifty are fewer than a twentieth"


def test_what_never_recovers_takes_the_whole_window() -> None:
    assert recovery(timeline(10.0), 2.0, 10.0) == 8.0
    assert recovery(timeline(3.0, stray=9.9), 2.0, 10.0) == 8.0
    assert recovery([(at, math.inf) for at, _ in timeline(2.0)], 2.0, 10.0) == 8.0
