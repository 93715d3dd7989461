"""Names and strings of a repository, as a log line, an error message or a metric's label."""

from __future__ import annotations

import os

import pytest

from fmplex_backend.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tâche 任务 🙂", "tâche 任务 🙂"),
        ("a line\n\tand another", "a line\n\tand another"),
        (os.fsdecode(b"x\xff"), "x\\xff"),
        ("n\udcc3\udca9", "né"),  # as a process whose file names are ASCII reads b"n\xc3\xa9"
        ("\ud800 \udfff", "\\ud800 \\udfff"),
        ("a\0b\x1b[31m\x7f\r", "a\\x00b\\x1b[31m\\x7f\\x0d"),
    ],
)
def test_every_text_can_be_carried(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).encode("utf-8")
