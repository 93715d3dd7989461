"""Pauses between the ends of a process, and when it is given up."""

from __future__ import annotations

from fmplex_controller.server.ends import LONGEST_S, MOST, WINDOW_S, Ends


def test_pauses_grow_until_it_is_given_up() -> None:
    ends = Ends()
    assert [ends.add(float(now)) for now in range(MOST + 1)] == [0.0, 1.0, 2.0, 4.0, 8.0, None]
    assert len(ends) == MOST + 1
    assert max(pause for pause in (0.0, 8.0)) <= LONGEST_S


def test_ends_long_ago_do_not_count() -> None:
    ends = Ends()
    assert [ends.add(end * (WINDOW_S + 1)) for end in range(MOST * 2)] == [0.0] * (MOST * 2)
    ends.add(MOST * 2 * (WINDOW_S + 1) - 1)
    ends.forget()
    assert ends.add(0.0) == 0.0
