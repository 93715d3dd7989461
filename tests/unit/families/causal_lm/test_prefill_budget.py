"""Others' prompts have less of a step while somebody asks for one thing at a time."""

from __future__ import annotations

import pytest

from fmplex_backend.families.causal_lm.prefill_budget import PER_ROW, PRESENT_S, PrefillBudget
from fmplex_backend.types import Request, Vfm

CHUNK = 64


class Steps:
    """Puts steps together as the scheduler does: a request leaves its queue once it is placed."""

    def __init__(self) -> None:
        self.now = 0.0
        self.prefill_budget = PrefillBudget(CHUNK, lambda: self.now)

    def ask(self, vfm: Vfm, tokens: int, count: int = 1) -> list[Request]:
        requests = [Request(vfm, {}, (), 0.0, lambda *_: None, prepared=tokens) for _ in range(count)]
        vfm.queue.extend(requests)
        return requests

    def step(self, *order: Vfm, begins: bool = True) -> list[int]:
        """What each request, the first of its vFM that has not asked, gets of a step; 0: it waits."""
        self.prefill_budget.begin()
        return [self.place(vfm, begins) for vfm in order]

    def place(self, vfm: Vfm, begins: bool) -> int:
        request = vfm.queue[0]
        given = min(self.prefill_budget.most(request, request.prepared, begins=begins), request.prepared)
        if given:
            vfm.queue.popleft()
            self.prefill_budget.place(vfm, given)
        return given


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.fixture
def light() -> Vfm:
    return Vfm(1, "light")


@pytest.fixture
def heavy() -> Vfm:
    return Vfm(2, "heavy")


def test_prompts_have_whole_chunks_where_nobody_asks_for_one_thing_at_a_time(steps: Steps, heavy: Vfm) -> None:
    other = Vfm(3, "other")
    steps.ask(heavy, 500, 4)
    steps.ask(other, 500, 4)
    assert steps.step(heavy, other, heavy) == [CHUNK, CHUNK, CHUNK]


def test_one_who_asks_for_one_thing_at_a_time_has_whole_chunks_and_others_what_is_left(
    steps: Steps, light: Vfm, heavy: Vfm
) -> None:
    steps.ask(light, 40)
    steps.ask(heavy, 1, 3)
    steps.ask(heavy, 500)
    assert steps.step(light, heavy, heavy, heavy, heavy) == [40, 1, 1, 1, CHUNK - 40 - 3 * PER_ROW]


def test_every_vfm_goes_on_and_its_other_prompts_wait(steps: Steps, light: Vfm, heavy: Vfm) -> None:
    other = Vfm(3, "other")
    steps.ask(light, 1)
    steps.ask(heavy, 500, 3)
    steps.ask(other, 500, 3)
    assert steps.step(light, heavy, other, heavy) == [1, CHUNK - PER_ROW, CHUNK // 8, 0]


def test_prompts_wait_where_the_one_of_somebody_who_asks_for_nothing_else_fills_the_step(
    steps: Steps, light: Vfm, heavy: Vfm
) -> None:
    steps.ask(light, CHUNK)
    steps.ask(heavy, 500, 3)
    assert steps.step(light, heavy, heavy) == [CHUNK, 0, 0]
    steps.ask(light, 1)
    assert steps.step(light, heavy, heavy) == [1, CHUNK - PER_ROW, 0]


def test_short_prompts_share_a_step(steps: Steps, light: Vfm, heavy: Vfm) -> None:
    steps.ask(light, 8)
    steps.ask(heavy, 16, 5)
    assert steps.step(light, *[heavy] * 5) == [8, 16, 16, 16, 8, 0]


def test_it_is_about_for_a_while(steps: Steps, light: Vfm, heavy: Vfm) -> None:
    steps.ask(light, 8)
    steps.ask(heavy, 500, 9)
    steps.step(light)
    steps.now = PRESENT_S
    assert steps.step(heavy, heavy) == [CHUNK, 0]
    steps.now += 0.1
    assert steps.step(heavy, heavy) == [CHUNK, CHUNK]


def test_an_answer_that_takes_long_is_about_to_its_end(steps: Steps, light: Vfm, heavy: Vfm) -> None:
    steps.ask(light, 8)
    steps.step(light)
    steps.ask(heavy, 500, 9)
    for _ in range(3):
        steps.now += PRESENT_S
        steps.ask(light, 1)
        assert steps.step(light, heavy, heavy, begins=False) == [1, CHUNK - PER_ROW, 0]


def test_the_last_of_many_requests_holds_back_nobody(steps: Steps, heavy: Vfm) -> None:
    other = Vfm(3, "other")
    steps.ask(other, 1)
    steps.ask(heavy, 500, 2)
    assert steps.step(other, heavy, heavy, begins=False) == [1, CHUNK, CHUNK]


def test_two_who_ask_for_one_thing_at_a_time_do_not_hold_each_other_back(steps: Steps, light: Vfm) -> None:
    other = Vfm(3, "other")
    steps.ask(light, 500)
    steps.ask(other, 500)
    assert steps.step(light, other) == [CHUNK, CHUNK]


def test_who_is_behind_its_turn_is_not_held_back(steps: Steps, light: Vfm, heavy: Vfm) -> None:
    heavy.weight = 2.0
    light.start = 1.0
    for lag, given in ((0.12, 0), (0.13, CHUNK)):
        steps.ask(light, CHUNK)
        steps.ask(heavy, 500, 2)
        heavy.start = light.start - lag
        assert steps.step(light, heavy, heavy)[-1] == given


def test_copies_neither_hold_back_nor_are_held_back(steps: Steps, heavy: Vfm) -> None:
    copies = Vfm(2, "heavy", spare=True)
    steps.ask(copies, 500)
    steps.ask(heavy, 500, 3)
    assert steps.step(copies, heavy, heavy) == [CHUNK, CHUNK, CHUNK]
