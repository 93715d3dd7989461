"""The log: each event once, however often the repository is read."""

from __future__ import annotations

import logging

import pytest

from fmplex_backend.serving.tasklog import TaskLog


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "fmplex")
    return caplog


def test_a_refusal_is_said_once_and_another_one_again(said: pytest.LogCaptureFixture) -> None:
    log = TaskLog()
    for text in ("no head", "no head", "no adapter", "no head"):
        log.refused("one", text)
    assert said.messages == [f"task one refused: {text}" for text in ("no head", "no adapter", "no head")]
    assert log.refusals == {"one": "no head"}


def test_what_is_refused_again_after_it_was_served_is_news(said: pytest.LogCaptureFixture) -> None:
    log = TaskLog()
    log.refused("one", "no head")
    log.refused("two", "no head")
    log.forget_refusals({"two"})
    assert log.refusals == {"two": "no head"}
    log.refused("one", "no head")
    log.refused("two", "no head")
    assert said.messages == [f"task {name} refused: no head" for name in ("one", "two", "one")]
