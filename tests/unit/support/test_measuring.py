from __future__ import annotations

import pytest
from measuring import TIMES, Disturbed, figure, undisturbed


def test_a_disturbed_measurement_is_done_again() -> None:
    figures = iter([1, 5])

    def measure() -> int:
        value = next(figures)
        figure(value > 2, value)
        return value

    assert undisturbed(measure) == 5


def test_a_fault_shows_every_time() -> None:
    done: list[int] = []

    def measure() -> None:
        done.append(1)
        figure(False, "too slow")

    with pytest.raises(Disturbed, match="too slow"):
        undisturbed(measure)
    assert len(done) == TIMES


def test_what_no_noise_explains_fails_at_once() -> None:
    done: list[int] = []

    def measure() -> None:
        done.append(1)
        raise AssertionError("a wrong answer")

    with pytest.raises(AssertionError, match="a wrong answer"):
        undisturbed(measure)
    assert len(done) == 1
