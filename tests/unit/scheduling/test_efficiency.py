"""Where batches end: by hand, as a bound on what it costs, and with a fit that learns from the batches it ends."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_backend.scheduling import CostModel
from fmplex_backend.scheduling.efficiency import PROBE_DIVISOR, PROBE_EVERY, Efficiency
from fmplex_backend.types import PassShape, Request, Work

if TYPE_CHECKING:
    from conftest import MakeRig, Rig

FIXED, PER_ROW, TOKENS = 4.2e-3, 3.6e-3, 16


def model(fixed: float = FIXED) -> CostModel:
    """A pass takes a fixed part and 3.6 ms for each row of 16 tokens."""
    return CostModel(fixed=fixed, per_token=PER_ROW / TOKENS)


def backlog(rig: Rig, rows: int, tokens: int = TOKENS) -> list[Request]:
    """So many requests of a row of one task."""
    vfm = rig.vfm()
    return [rig.send(vfm, tokens) for _ in range(rows)]


# -- where a batch ends


@pytest.mark.parametrize(("tokens", "rows"), [(16, 13), (64, 5), (256, 2)])
def test_a_batch_ends_at_its_part_of_a_full_one_s_throughput(make_rig: MakeRig, tokens: int, rows: int) -> None:
    rig = make_rig(cost=model(), efficiency=0.95)
    backlog(rig, 40, tokens)
    assert len(rig.step()) == rows

    def throughput(rows: int) -> float:
        return rows / rig.cost.batch(Work(rows, rows * tokens, 0), 0)

    assert throughput(rows - 1) < 0.95 * throughput(32) <= throughput(rows)


@pytest.mark.parametrize("policy", ["bfq", "fifo"])
def test_one_lets_batches_grow_to_bmax(make_rig: MakeRig, policy: str) -> None:
    rig = make_rig(policy, cost=model(), efficiency=1.0)
    backlog(rig, 40)
    assert len(rig.step()) == 32


def test_fifo_stays_a_plain_batcher(make_rig: MakeRig) -> None:
    rig = make_rig("fifo", cost=model(), efficiency=0.6)
    backlog(rig, 40)
    assert len(rig.step()) == 32


def test_where_the_fixed_part_is_large_batches_stay_large(make_rig: MakeRig) -> None:
    rig = make_rig(cost=model(fixed=1.0), efficiency=0.95)
    backlog(rig, 40)
    assert len(rig.step()) == 31


def test_where_nothing_is_fixed_rows_gain_nothing_from_company(make_rig: MakeRig) -> None:
    rig = make_rig(cost=model(fixed=0.0), efficiency=0.95)
    backlog(rig, 3)
    assert [len(rig.step()) for _ in range(3)] == [1, 1, 1]


def test_nothing_waits_until_a_batch_pays(make_rig: MakeRig) -> None:
    rig = make_rig(cost=model(), efficiency=0.95)
    sent = backlog(rig, 3)
    assert rig.step() == sent


@pytest.mark.parametrize("items", [20, 50])
def test_a_request_of_many_rows_runs_whole(make_rig: MakeRig, items: int) -> None:
    rig = make_rig(cost=model(), efficiency=0.95)
    vfm = rig.vfm()
    few = rig.send(vfm, TOKENS)
    many = [rig.send(vfm, items * TOKENS, items=items) for _ in range(2)]
    batches = [rig.step() for _ in range(3)] if items > 32 else [rig.step(), rig.step()]
    assert batches == ([[few], *([each] for each in many)] if items > 32 else [[few, many[0]], [many[1]]])


def test_what_a_batch_pays_once_makes_it_longer(make_rig: MakeRig) -> None:
    """Several passes for mixed lengths, the engine's own time, and adapter groups."""

    def rows(cost: CostModel, *, adapted: bool = False) -> int:
        rig = make_rig(cost=cost, efficiency=0.95)
        vfms = [rig.vfm() for _ in range(2)]
        for vfm in vfms:
            vfm.adapted = adapted
            for _ in range(20):
                rig.send(vfm, TOKENS)
        return len(rig.step())

    passes, outside, groups = model(), model(), model()
    for _ in range(200):
        passes.observe_batch(2, 0.0)
        outside.observe_batch(1, FIXED)
    groups.per_group = FIXED / 2
    assert rows(model()) == 13
    assert rows(passes) == rows(outside) == rows(groups, adapted=True) == 19


def test_steps_of_sequences_fill_the_batch_that_a_prompt_ends(make_rig: MakeRig) -> None:
    rig = make_rig(cost=model(), efficiency=0.95)
    sequences = [rig.send(vfm, 1) for vfm in [rig.vfm() for _ in range(20)]]
    prompt, behind = rig.send(rig.vfm(), 512), rig.send(rig.vfm(), 1)
    assert rig.step() == [*sequences, prompt]  # 20 steps of a token cost less than the fixed part
    assert rig.step() == [behind]


# -- deadlines


@pytest.mark.parametrize(
    ("slo", "joins"), [(None, False), (0.057, False), (0.058, True), (0.061, True), (0.062, False)]
)
def test_a_deadline_that_only_this_batch_meets_is_met(make_rig: MakeRig, slo: float | None, joins: bool) -> None:
    """14 rows take 54.6 ms; the next batch's first row is done after 51 and 7.8. All with 5% for safety."""
    rig = make_rig(cost=model(), efficiency=0.95)
    sent = backlog(rig, 13)
    last = rig.send(sent[0].vfm, TOKENS, slo=slo)
    rig.send(last.vfm, TOKENS)
    assert rig.step() == ([*sent, last] if joins else sent)


@pytest.mark.parametrize(("urgent", "rows"), [(2, 13), (3, 32)])
def test_where_many_with_deadlines_wait_throughput_comes_first(make_rig: MakeRig, urgent: int, rows: int) -> None:
    rig = make_rig(cost=model(), efficiency=0.95)
    sent = backlog(rig, 32)
    for _ in range(urgent):
        rig.send(sent[0].vfm, TOKENS, slo=10.0)
    assert rig.step() == sent[:rows]


# -- what it costs


@given(
    lengths=st.lists(st.integers(1, 512), min_size=1, max_size=120),
    fixed=st.floats(0, 1e-1),
    per_area=st.floats(0, 1e-6),
    part=st.floats(0.5, 0.999),
    max_items=st.integers(1, 64),
)
def test_a_backlog_takes_little_more_than_in_full_batches(
    rigs: type[Rig], lengths: list[int], fixed: float, per_area: float, part: float, max_items: int
) -> None:
    """No batches of at most Bmax rows could take less than `part` of the time of those that are ended early.

    And none is long: what its rows took before the last one joined is bounded by the fixed part.
    """
    cost = CostModel(fixed=fixed, per_token=1e-5, per_area=per_area)
    with rigs(max_items=max_items, cost=cost, efficiency=part) as rig:
        vfm = rig.vfm()
        for length in lengths:
            rig.send(vfm, length)
        spent, least = 0.0, 0.0
        while rig.scheduler.queued:
            ended = rig.scheduler.efficiency.ended
            batch = rig.step()
            work = sum((request.work for request in batch), Work(0, 0, 0))
            assert 1 <= len(batch) <= max_items
            before = sum((request.work for request in batch[:-1]), Work(0, 0, 0))
            assert cost.rows(before) <= fixed * part / (1 - part) + 1e-9
            if rig.scheduler.efficiency.ended > ended and ended % PROBE_EVERY != PROBE_EVERY - 1:
                spent += cost.batch(work, 0)
                least += fixed * work.items / max_items + cost.rows(work)
        assert least >= part * spent - 1e-6 * max(spent, 1e-6) - 1e-7


# -- a fit that sees nothing but the batches it ends


def end(rule: Efficiency, max_items: int = 32) -> int:
    """Rows of 16 tokens at which a batch of a backlog ends."""
    rows = next(n for n in range(1, max_items + 1) if n == max_items or rule.reached(Work(n, n * TOKENS, 0), 0))
    rule.ended += rows < max_items
    return rows


def test_now_and_then_a_batch_ends_earlier_to_learn_from_it() -> None:
    rule = Efficiency(model(), 32, 0.95)
    sizes = [end(rule) for _ in range(2 * PROBE_EVERY)]
    assert sizes == [*[13] * (PROBE_EVERY - 1), -(-13 // PROBE_DIVISOR)] * 2


def test_large_batches_are_not_ended_for_that() -> None:
    rule = Efficiency(model(fixed=1.0), 32, 0.95)
    assert {end(rule) for _ in range(2 * PROBE_EVERY)} == {31}


def backlogged(cost: CostModel, rng: random.Random, batches: int, *, noise: float, drift: float) -> list[int]:
    """Rows of batches of 16 tokens on a machine with noise, whose speed drifts; the fit learns from these alone."""
    rule = Efficiency(cost, 32, 0.95)
    sizes, speed = [], 0.0
    for _ in range(batches):
        rows = end(rule)
        speed += 0.02 * (rng.gauss(0, 7 * drift) - speed)
        elapsed = (FIXED + rows * PER_ROW) * 2.718 ** (speed + rng.gauss(0, noise))
        cost.observe(PassShape(rows * TOKENS, TOKENS, 0), rows, elapsed)
        sizes.append(rows)
    return sizes


@pytest.mark.parametrize(("noise", "drift"), [(0.03, 0.0), (0.1, 0.2)])
def test_the_end_of_a_batch_stays_where_it_belongs(rng: random.Random, noise: float, drift: float) -> None:
    sizes = sorted(backlogged(model(), rng, 5000, noise=noise, drift=drift))
    assert 12 <= sizes[len(sizes) // 2] <= 15
    assert sizes[len(sizes) // 12] >= 9  # all but the probes
    assert sizes[-len(sizes) // 100] <= 18


def test_a_fit_with_no_fixed_part_finds_it(rng: random.Random) -> None:
    sizes = backlogged(model(fixed=0.0), rng, 400, noise=0.03, drift=0.0)
    assert sizes[0] == 1
    assert 11 <= sorted(sizes[50:])[len(sizes[50:]) // 2] <= 15
