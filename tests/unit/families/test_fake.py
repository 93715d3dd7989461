"""The family of the tests: sequences, and the parts of their replies."""

from __future__ import annotations

from typing import Any

import pytest
from backend_fixtures import TextExtensions, TextStandIn, bytes_of

from fmplex_backend.types import Finished, Outcome, Request, Running, Runtime, Vfm, Work


def outcomes(*rows: str) -> list[Outcome]:
    """Of each step, until it is not Running."""
    runtime: Runtime = TextStandIn(sleep=lambda seconds: None)
    vfm = Vfm(0, "task")
    vfm.extensions = TextExtensions()
    runtime.attach(vfm.extensions)
    request = Request(vfm, {"TEXT": bytes_of(*rows)}, (), 0.0, lambda reply, final: None)
    request.extensions = vfm.extensions
    runtime.prepare(request)
    found: list[Outcome] = []
    while not found or isinstance(found[-1], Running):
        (done,) = runtime.run([request])
        ((_, outcome),) = done.outcomes
        found.append(outcome)
    return found


@pytest.mark.parametrize("line", ["a b", "steps=0 b", "steps=1 b", "stream b", "stream steps=1"])
def test_one_step_is_one_reply(line: str) -> None:
    assert outcomes(line) == [Finished([line.split()])]


def test_a_sequence_needs_a_token_per_row_at_each_step_after_the_first() -> None:
    running = Running(Work(2, 2, 2))
    assert outcomes("steps=3 a b", "c") == [running, running, Finished([["steps=3", "a", "b"], ["c"]])]


def test_a_stream_yields_its_first_words_as_parts() -> None:
    parts: list[Any] = [each.value for each in outcomes("stream steps=3 a", "b c") if isinstance(each, Running)]
    assert parts == [[["stream"], ["b"]], [["stream", "steps=3"], ["b", "c"]]]


def test_its_extensions_are_as_the_entry_is_checked_against() -> None:
    extensions = TextExtensions(7.0, adapter="lora", takes="TEXT")
    assert (extensions.takes, extensions.adapted, TextExtensions().adapted) == ("TEXT", True, False)
    made = TextStandIn().tensors([["a"], ["b", "c"]], extensions)
    assert {name: value.shape[-1] for name, value in made.items()} == extensions.outputs
