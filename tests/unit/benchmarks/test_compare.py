"""Arms take turns, and are compared round by round."""

from __future__ import annotations

import math
from functools import partial

from benchmarks.harness.compare import against, interleave, ratio, spread, text


def test_arms_take_turns() -> None:
    calls: list[tuple[str, int]] = []

    def run(name: str, number: int) -> int:
        calls.append((name, number))
        return number

    arms = {name: partial(run, name) for name in ("a", "b")}
    assert interleave(arms, 2) == {"a": [0, 1], "b": [0, 1]}
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


def test_ratios_are_of_the_same_round() -> None:
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert ratio([1.0], [0.0])["median"] == math.inf


def test_how_figures_are_written() -> None:
    assert text(spread([0.98, 0.99, 0.975])) == "0.980 (0.975 to 0.990)"
    assert against(0.97, 0.97) == "target at least 0.97, met"
    assert against(0.96, 0.97) == "target at least 0.97, MISSED"
    assert against(1.2, 1.1, at_most=True) == "target at most 1.1, MISSED"
