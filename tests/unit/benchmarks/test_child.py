"""Processes of the benchmarks' own, which answer line by line."""

from __future__ import annotations

import pytest

from benchmarks.load.child import Child
from benchmarks.load.streams import StreamPlan, Streams


def test_each_line_is_answered() -> None:
    with Streams() as streams:
        for _ in range(2):
            assert streams.run(StreamPlan("localhost:1", [], 0.0, warmup=0.0)) == {}
    assert streams._process.returncode == 0


def test_what_a_process_said_as_it_ended_is_told() -> None:
    class Absent(Child):
        module = "benchmarks.load.absent"

    with pytest.raises(RuntimeError, match=r"(?s)^benchmarks\.load\.absent has ended:.*No module named"):
        Absent({})
