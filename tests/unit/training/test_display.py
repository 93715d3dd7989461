"""Lines for people: when they come, and what is in them."""

from __future__ import annotations

import io
import threading

import pytest

from fmplex.training.display import Lines, duration, line, ticking
from fmplex.training.progress import Status


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_at_once_and_then_every_ten_seconds() -> None:
    out, clock = io.StringIO(), Clock()
    lines = Lines(out, clock=clock)
    lines.tick()  # nothing is known yet
    lines(Status("spam", "loading the backbone"))
    for second in range(1, 25):
        clock.now = 100.0 + second
        if second < 15:
            lines(Status("spam", "epoch 1 of 3", 0.1, float(second), loss=0.5))
        else:
            lines.tick()  # a long piece of work reports nothing
    assert out.getvalue().splitlines() == [
        "spam: loading the backbone, 0%, 0:00 gone",
        "spam: epoch 1 of 3, 10%, loss 0.500, 0:10 gone",
        "spam: epoch 1 of 3, 10%, loss 0.500, 0:20 gone",
    ]


def test_what_a_line_says() -> None:
    status = Status("spam", "epoch 2 of 3", 0.5, 61.0, 60.4, 0.25, 0.3, ("micro_f1", 0.875))
    assert line(status) == "spam: epoch 2 of 3, 50%, loss 0.250, validation micro f1 0.875, 1:01 gone, 1:00 left"
    assert line(Status("spam", "epoch 1 of 1", validation_loss=0.5)).endswith("validation loss 0.500, 0:00 gone")


@pytest.mark.parametrize(("seconds", "text"), [(7, "0:07"), (59.6, "1:00"), (750, "12:30"), (3723, "1:02:03")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_ticks_come_until_the_block_ends() -> None:
    ticked = threading.Event()
    with ticking(ticked.set, every=0.001):
        assert ticked.wait(10)
    assert not any(thread.name == "fmplex-progress" for thread in threading.enumerate())
