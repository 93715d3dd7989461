"""Which passes are captured, without a GPU."""

from __future__ import annotations

import logging

import pytest
import torch
from fake_family.runtime import FakeClock

from fmplex_backend.families.cuda_graphs import Graphs


class Captures:
    """Captures take a second each; raises what it is told to."""

    def __init__(self, **options: int) -> None:
        self.clock = FakeClock(0.0)
        self.error: Exception | None = None
        self.shapes: list[str] = []
        self.graphs: Graphs[str, str] = Graphs(self.capture, clock=self.clock, **options)

    def capture(self, shape: str) -> str:
        self.shapes.append(shape)
        self.clock.sleep(1.0)
        if self.error:
            raise self.error
        return f"graph of {shape}"

    def find(self, *shapes: str) -> list[str | None]:
        return [self.graphs.find(shape) for shape in shapes]


def test_a_shape_is_captured_once_it_has_come_up_often() -> None:
    captures = Captures(after=3)
    assert captures.find("a", "b", "a", "a", "a") == [None, None, None, "graph of a", "graph of a"]
    assert captures.shapes == ["a"]


def test_at_most_a_tenth_of_the_time_is_spent_on_captures() -> None:
    captures = Captures(after=1)
    assert captures.find("a", "b", "b") == ["graph of a", None, None]
    captures.clock.sleep(8.9)
    assert captures.find("b", "a") == [None, "graph of a"]
    captures.clock.sleep(0.2)
    assert captures.find("b") == ["graph of b"]


def test_the_least_recently_used_are_dropped() -> None:
    captures = Captures(after=1, most=2)
    for shape in "ab":
        captures.find(shape)
        captures.clock.sleep(10.0)
    captures.find("a", "c")
    assert captures.graphs.captured == 2
    captures.clock.sleep(10.0)
    captures.find("a", "b")
    assert captures.shapes == ["a", "b", "c", "b"]


def test_cleared_graphs_are_captured_again() -> None:
    captures = Captures(after=2)
    captures.find("a", "a")
    captures.graphs.clear()
    captures.clock.sleep(10.0)
    assert captures.find("a") == ["graph of a"]
    assert captures.shapes == ["a", "a"]


def test_a_backbone_that_cannot_be_captured_runs_without(caplog: pytest.LogCaptureFixture) -> None:
    captures = Captures(after=1)
    captures.error = RuntimeError("a copy from the CPU")
    with caplog.at_level(logging.WARNING):
        assert captures.find("a", "a", "b") == [None, None, None]
    assert captures.shapes == ["a"]
    assert not captures.graphs.usable
    assert "no CUDA graphs: capturing a pass raised RuntimeError: a copy from the CPU" in caplog.text


def test_a_lack_of_memory_leaves_the_others(caplog: pytest.LogCaptureFixture) -> None:
    captures = Captures(after=1)
    captures.error = torch.OutOfMemoryError("none left")
    with caplog.at_level(logging.WARNING):
        assert captures.find("a") == [None]
    captures.error = None
    captures.clock.sleep(10.0)
    assert captures.find("a", "b") == [None, "graph of b"]
    assert "no memory for a CUDA graph of a" in caplog.text
