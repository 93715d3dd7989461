"""Passes of a batch of which one raises: the others' requests run alone, and each has an outcome."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from fmplex_backend.serving.batch import BackboneCounts, isolated, raising
from fmplex_backend.types import Failed, Finished, Pass, Work


class Runtime:
    """Answers every request but those of `bad`."""

    def __init__(self, bad: Sequence[Any] = (), *, fatal: bool = False) -> None:
        self.bad, self.fatal = bad, fatal

    def run(self, batch: Sequence[Any]) -> Iterator[Pass]:
        if any(request is each for request in batch for each in self.bad):
            raise ValueError("odd")
        yield Pass(None, [], [(request, Finished(None)) for request in batch])

    def is_fatal(self, error: Exception) -> bool:
        return self.fatal


def outcomes(batch: list[Any], passes: Iterator[Pass], runtime: Any) -> tuple[list[bool], int]:
    """Whether each request failed, in the order of the batch, and how many passes broke."""
    in_flight, counts, found = set(map(id, batch)), BackboneCounts(), {}

    class InFlight:
        def __contains__(self, request: Any) -> bool:
            return id(request) in in_flight

    asked: Any = InFlight()
    for done in isolated(batch, passes, runtime, asked, counts):
        for request, outcome in done.outcomes:
            in_flight.remove(id(request))
            found[id(request)] = isinstance(outcome, Failed)
    return [found[id(request)] for request in batch], counts.broken_passes


@pytest.fixture
def batch() -> list[Any]:
    return [SimpleNamespace(work=Work(1, 1, 1)) for _ in range(3)]


def test_only_the_culprit_fails(batch: list[Any]) -> None:
    runtime = Runtime(batch[1:2])
    assert outcomes(batch, raising(ValueError("odd")), runtime) == ([False, True, False], 2)


def test_a_request_that_was_left_out_runs_alone(batch: list[Any]) -> None:
    first = Pass(None, [], [(batch[0], Finished(None))])
    assert outcomes(batch, iter([first]), Runtime()) == ([False] * 3, 1)


def test_what_is_fatal_is_raised(batch: list[Any]) -> None:
    with pytest.raises(ValueError, match="odd"):
        outcomes(batch, raising(ValueError("odd")), Runtime(fatal=True))
