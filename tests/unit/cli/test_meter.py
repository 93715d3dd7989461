"""The progress of a file: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from fmplex.cli.meter import EVERY_S, Meter


def test_off_a_terminal_a_line_now_and_then() -> None:
    now, out = 0.0, io.StringIO()
    meter = Meter("spam", 200, console=Console(file=out, width=80), clock=lambda: now)
    with meter.shown():
        meter.at(10, 100)
        assert out.getvalue() == ""
        now = EVERY_S
        meter.at(100, 1000)
        meter.at(110, 1100)
        assert out.getvalue() == "spam: 1,000 rows (50% read)\n"


def test_without_a_total() -> None:
    now, out = 0.0, io.StringIO()
    meter = Meter("spam", None, console=Console(file=out, width=80), clock=lambda: now)
    now = EVERY_S
    meter.at(100, 1000)
    assert out.getvalue() == "spam: 1,000 rows\n"


def test_on_a_terminal_a_bar_and_hidden_nothing() -> None:
    for hidden in (False, True):
        out = io.StringIO()
        meter = Meter("spam", 200, hidden=hidden, console=Console(file=out, force_terminal=True, width=80))
        with meter.shown():
            meter.at(100, 1000)
        assert ("1,000 rows" in out.getvalue()) != hidden
