"""Each policy, step by step. The rig checks after every test that nothing is left, lost or answered twice."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from fmplex_backend.scheduling import POLICIES, CostModel, Scheduler
from fmplex_backend.types import Request, Work

if TYPE_CHECKING:
    from conftest import MakeRig, Rig

ALL = tuple(POLICIES)
BATCHED = ("bfq", "fifo")
FAIR = ("bfq", "stfq")


def rounds(rig: Rig, count: int) -> list[Request]:
    """What `count` batches take, in order."""
    return [request for _ in range(count) for request in rig.step()]


# -- order


@pytest.mark.parametrize("policy", ALL)
def test_one_queue_is_served_in_order(make_rig: MakeRig, policy: str) -> None:
    rig = make_rig(policy, max_items=3)
    vfm = rig.vfm()
    sent = [rig.send(vfm, tokens) for tokens in (9, 1, 5, 7, 3)]
    assert rounds(rig, 5) == sent


@pytest.mark.parametrize("policy", ALL)
def test_equal_tags_go_by_arrival(make_rig: MakeRig, policy: str) -> None:
    rig = make_rig(policy, max_items=4)
    vfms = [rig.vfm(weight) for weight in (1, 5, 2, 3, 1, 4)]
    order = [3, 0, 5, 1, 4, 2]
    sent = [rig.send(vfms[i]) for i in order]
    assert rounds(rig, len(order)) == sent


@pytest.mark.parametrize("policy", FAIR)
def test_weights_set_the_order(make_rig: MakeRig, policy: str) -> None:
    rig = make_rig(policy, max_items=4)
    heavy, light = rig.vfm(3), rig.vfm(1)
    for _ in range(12):
        rig.send(light)
    for _ in range(12):
        rig.send(heavy)
    order = rounds(rig, 2 if policy == "bfq" else 8)
    assert [request.vfm for request in order[:4]] == [light, heavy, heavy, heavy]
    assert sum(request.vfm is heavy for request in order) == 6


@pytest.mark.parametrize("policy", FAIR)
def test_a_vfm_that_comes_from_another_backbone_waits_for_what_it_had_beyond_its_share(
    make_rig: MakeRig, policy: str
) -> None:
    there, here = make_rig(policy, max_items=1), make_rig(policy, max_items=1)
    mover, left = there.vfm(2.0), there.vfm()
    there.send(mover, 60)
    there.send(left, 10)
    there.send(left, 10)
    there.step()
    ahead = there.scheduler.ahead_s(mover)
    assert ahead == pytest.approx(0.06)
    rounds(there, 2)
    stays, came = here.vfm(), here.vfm(2.0)
    here.scheduler.begin_ahead(came, ahead)
    for _ in range(5):
        here.send(stays, 10)
    here.send(came, 10)
    order = [request.vfm for request in rounds(here, 6)]
    assert order == [stays, stays, stays, came, stays, stays], "30 ms of virtual time at weight 2"


@pytest.mark.parametrize("policy", FAIR)
def test_long_requests_count_for_more(make_rig: MakeRig, policy: str) -> None:
    rig = make_rig(policy, max_items=1)
    long, short = rig.vfm(), rig.vfm()
    for _ in range(40):
        rig.send(long, 400)
        rig.send(short, 100)
    taken = rounds(rig, 25)
    assert sum(request.vfm is long for request in taken) == 5
    assert long.service == pytest.approx(short.service)


def test_fifo_goes_by_arrival_over_all_vfms(make_rig: MakeRig, rng: random.Random) -> None:
    rig = make_rig("fifo", max_items=4)
    vfms = [rig.vfm(weight) for weight in (1, 100, 1)]
    sent = [rig.send(rng.choice(vfms), rng.randint(1, 50)) for _ in range(20)]
    batches = [rig.step() for _ in range(5)]
    assert [len(batch) for batch in batches] == [4] * 5
    assert [request for batch in batches for request in batch] == sent


def test_stfq_takes_one_at_a_time(make_rig: MakeRig) -> None:
    rig = make_rig("stfq", max_items=32)
    for vfm in (rig.vfm(), rig.vfm()):
        for _ in range(3):
            rig.send(vfm)
    assert [len(rig.step()) for _ in range(6)] == [1] * 6


@pytest.mark.parametrize("seed", range(5))
def test_stfq_has_the_order_of_bfq(make_rig: MakeRig, seed: int) -> None:
    def order(policy: str) -> list[tuple[int, int]]:
        random_ = random.Random(seed)
        rig = make_rig(policy, max_items=random_.randint(2, 16))
        vfms = [rig.vfm(random_.uniform(0.5, 5)) for _ in range(6)]
        for _ in range(120):
            rig.send(random_.choice(vfms), random_.randint(8, 512))
        taken: list[Request] = []
        while rig.scheduler.queued:
            taken += rig.step()
        return [(request.vfm.id, request.admission_number) for request in taken]

    assert order("stfq") == order("bfq")


# -- how large a batch grows


@pytest.mark.parametrize("policy", BATCHED)
def test_bmax_counts_items(make_rig: MakeRig, policy: str) -> None:
    rig = make_rig(policy, max_items=8)
    vfms = [rig.vfm() for _ in range(4)]
    sent = [rig.send(vfm, items=3) for vfm in vfms]
    batch = rig.step()
    assert batch == sent[:2]
    assert {request.batch_items for request in batch} == {6}


@pytest.mark.parametrize("policy", BATCHED)
def test_nothing_overtakes_a_head_that_does_not_fit(make_rig: MakeRig, policy: str) -> None:
    rig = make_rig(policy, max_items=8)
    first, second, third = (rig.send(rig.vfm(), items=items) for items in (5, 5, 2))
    assert rig.step() == [first]
    assert rig.step() == [second, third]


@pytest.mark.parametrize("policy", BATCHED)
def test_token_budget(make_rig: MakeRig, policy: str) -> None:
    rig = make_rig(policy, max_tokens=100)
    sent = [rig.send(rig.vfm(), tokens) for tokens in (60, 40, 1, 99, 1)]
    assert [rig.step() for _ in range(3)] == [sent[:2], sent[2:4], sent[4:]]


@pytest.mark.parametrize("policy", ALL)
def test_a_request_over_the_limits_runs_alone(make_rig: MakeRig, policy: str) -> None:
    rig = make_rig(policy, max_items=4, max_tokens=100)
    over_tokens = rig.send(rig.vfm(), 500)
    over_items = rig.send(rig.vfm(), 50, items=9)
    small = rig.send(rig.vfm(), 10)
    assert [rig.step() for _ in range(3)] == [[over_tokens], [over_items], [small]]


@pytest.mark.parametrize("policy", ALL)
def test_nothing_is_held_back(make_rig: MakeRig, policy: str) -> None:
    rig = make_rig(policy)
    assert rig.choose() == []
    lonely = rig.send(rig.vfm(slo=1e-9))
    assert rig.step() == [lonely]
    assert rig.choose() == []


# -- rows that requests share


@pytest.mark.parametrize("policy", BATCHED)
def test_a_row_that_is_shared_counts_once(make_rig: MakeRig, policy: str) -> None:
    """Against Bmax and the token budget; the receipts count what was asked for."""
    rig = make_rig(policy, max_items=2, max_tokens=20)
    sent = [rig.send(rig.vfm(), keys=[key]) for key in "abababcab"]
    batch = rig.step()
    assert {*batch} == {*sent[:6], *sent[7:]}
    assert {request.batch_items for request in batch} == {8}
    assert rig.step() == [sent[6]]


def test_only_the_rows_that_are_new_count(make_rig: MakeRig) -> None:
    rig = make_rig(max_items=3)
    sent = [rig.send(rig.vfm(), keys=keys) for keys in ("ab", "bc", "cd")]
    assert [rig.step(), rig.step()] == [sent[:2], sent[2:]]


def test_requests_without_keys_share_nothing(make_rig: MakeRig) -> None:
    rig = make_rig(max_items=2)
    sent = [rig.send(rig.vfm()) for _ in range(4)]
    assert [rig.step(), rig.step()] == [sent[:2], sent[2:]]


def test_shared_rows_are_bounded_too(make_rig: MakeRig) -> None:
    """The answers take time, if the rows do not."""
    rig = make_rig(max_items=2)
    vfm = rig.vfm()
    for _ in range(100):
        rig.send(vfm, keys=["a"])
    assert [len(rig.step()) for _ in range(4)] == [32, 32, 32, 4]


def test_stfq_shares_nothing(make_rig: MakeRig) -> None:
    rig = make_rig("stfq")
    sent = [rig.send(rig.vfm(), keys=["a"]) for _ in range(3)]
    assert [rig.step() for _ in range(3)] == [[request] for request in sent]


def test_a_shared_row_does_not_move_the_finish(make_rig: MakeRig) -> None:
    rig = make_rig()
    first = rig.send(rig.vfm(slo=0.011), keys=["a"])
    same, other = rig.send(rig.vfm(), keys=["a"]), rig.send(rig.vfm(), keys=["b"])
    assert [rig.step(), rig.step()] == [[first, same], [other]]


def test_who_shares_a_row_pays_an_equal_part(make_rig: MakeRig) -> None:
    rig = make_rig()
    one, two, three = (rig.vfm() for _ in range(3))
    for vfm, keys in ((one, "a"), (two, "a"), (three, "b")):
        rig.send(vfm, keys=keys)
    rig.run(rig.choose(), 0.2)
    assert [vfm.service for vfm in (one, two, three)] == pytest.approx([0.05, 0.05, 0.1], rel=1e-6)
    assert [vfm.start for vfm in (one, two, three)] == pytest.approx([0.05, 0.05, 0.1], rel=1e-6)


def test_an_estimate_counts_those_who_have_joined_before(make_rig: MakeRig) -> None:
    rig = make_rig()
    sent = [rig.send(rig.vfm(), keys=["a"]) for _ in range(4)]
    batch = rig.choose()
    assert [request.charge for request in sent] == pytest.approx([0.01, 0.005, 0.01 / 3, 0.0025], rel=1e-6)
    rig.run(batch)


def ahead(rig: Rig, tokens: int, *keys: str) -> Request:
    """A vFM that has had so many tokens while another waited, and the first of its requests, one for each key."""
    vfm = rig.vfm()
    rig.send(vfm, tokens)
    assert [request.vfm for request in rig.step()] == [vfm]
    first, *_ = [rig.send(vfm, keys=[key]) for key in keys]
    return first


def test_a_row_that_runs_anyway_is_had_before_its_turn(make_rig: MakeRig) -> None:
    """Else it would run once more; virtual time is that of those whose turn it was."""
    rig = make_rig(max_items=2)
    early = ahead(rig, 100, "a", "b", "c")
    now = rig.scheduler.virtual_time
    sent = [rig.send(rig.vfm(), keys=[key]) for key in "abcd"]
    batch = rig.choose()
    assert [request.vfm for request in batch] == [sent[0].vfm, sent[1].vfm, early.vfm, early.vfm]
    assert rig.scheduler.virtual_time == now < early.vfm.start
    rig.run(batch)
    assert early.vfm.service == pytest.approx(0.1 + 0.01, rel=1e-6)
    assert {request.vfm for request in rig.step()} == {sent[2].vfm, sent[3].vfm, early.vfm}


def test_who_has_no_room_does_not_run_before_its_turn_either(make_rig: MakeRig) -> None:
    """Whoever is in a batch was asked about."""
    rig = make_rig(max_items=2)
    early = ahead(rig, 100, "a", "b")
    rig.scheduler.has_room = lambda request: request.vfm is not early.vfm
    sent = [rig.send(rig.vfm(), keys=[key]) for key in "abc"]
    batch = rig.choose()
    assert batch == sent[:2]
    rig.scheduler.has_room = None
    rig.run(batch)
    assert {request.vfm for request in rig.step()} == {sent[2].vfm, early.vfm}


def test_who_is_far_ahead_waits_all_the_same(make_rig: MakeRig) -> None:
    rig = make_rig(max_items=1)
    early = ahead(rig, 251, "a")
    sent, other = (rig.send(rig.vfm(), keys=[key]) for key in "ab")
    assert [rig.step() for _ in range(3)] == [[sent], [other], [early]]


def test_a_head_is_not_overtaken_by_its_own_task(make_rig: MakeRig) -> None:
    rig = make_rig(max_items=1)
    first = ahead(rig, 100, "b", "a")
    sent = rig.send(rig.vfm(), keys=["a"])
    assert rig.step() == [sent]
    assert rig.step() == [first]


@pytest.mark.parametrize("late", range(10))
def test_tasks_that_are_asked_the_same_stay_together(make_rig: MakeRig, late: int) -> None:
    """One that fell behind by a text would pay for all its rows alone, and fall behind further and further."""
    rig = make_rig(max_items=5)
    vfms = [rig.vfm() for _ in range(10)]
    rig.send(vfms[late], keys=["before"])
    for text in range(200):
        for vfm in vfms:
            rig.send(vfm, keys=[text])
    rows = 0
    while rig.scheduler.queued:
        rows += len({key for request in rig.step() for key in request.rows})
    assert rows <= 1.02 * 201


# -- deadlines


def test_a_batch_stops_before_it_breaks_a_deadline(make_rig: MakeRig) -> None:
    rig = make_rig()
    urgent, other = rig.vfm(slo=0.05), rig.vfm()
    first = rig.send(urgent, 20)
    sent = [rig.send(other, 20) for _ in range(4)]
    assert rig.step() == [first, sent[0]]  # three would take 60 ms
    assert rig.step() == sent[1:]


def test_the_deadline_of_a_later_one_counts_too(make_rig: MakeRig) -> None:
    rig = make_rig()
    patient, urgent, other = rig.vfm(slo=10), rig.vfm(slo=0.05), rig.vfm()
    sent = [rig.send(vfm, 20) for vfm in (patient, urgent, other)]
    assert rig.step() == sent[:2]


def test_a_lost_deadline_does_not_stop_a_batch(make_rig: MakeRig) -> None:
    rig = make_rig()
    hopeless, other = rig.vfm(slo=0.01), rig.vfm()
    sent = [rig.send(vfm, 20) for vfm in (hopeless, other, other, hopeless)]
    assert sorted(rig.step(), key=lambda request: request.admission_number) == sent


def test_one_that_joins_late_sets_no_limit(make_rig: MakeRig) -> None:
    rig = make_rig()
    other, hopeless = rig.vfm(), rig.vfm(slo=0.03)  # alone it would be in time, second it is not
    sent = [rig.send(vfm, 20) for vfm in (other, hopeless, other)]
    assert len(rig.step()) == len(sent)


def test_the_reply_latency_counts_towards_the_deadline(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.scheduler.reply_latency = 0.02
    urgent, other = rig.vfm(slo=0.05), rig.vfm()
    sent = [rig.send(vfm, 20) for vfm in (urgent, other, other)]
    assert rig.step() == sent[:1]  # two take 40 ms, and their answers come 20 ms later


def test_deadlines_are_kept_with_a_margin(make_rig: MakeRig) -> None:
    rig = make_rig()
    sent = [rig.send(vfm, 20) for vfm in (rig.vfm(slo=0.0405), rig.vfm())]
    assert rig.step() == sent[:1]


@pytest.mark.parametrize(("waiting", "taken"), [(2, 2), (3, 6)])
def test_where_many_with_deadlines_wait_a_batch_is_not_cut(make_rig: MakeRig, waiting: int, taken: int) -> None:
    rig = make_rig(max_items=32)
    urgent, other, light = rig.vfm(slo=0.05), rig.vfm(), rig.vfm(1e-3, slo=10)
    rig.send(light, 1)
    rig.step()  # the next ones of the light one come long after the others'
    first = rig.send(urgent, 20)
    sent = [rig.send(other, 20) for _ in range(5)]
    for _ in range(waiting):
        rig.send(light, 1)
    assert rig.step()[:taken] == [first, *sent][:taken]
    assert len(sent[0].vfm.queue) == 6 - taken


def test_waiting_counts_towards_the_deadline(make_rig: MakeRig) -> None:
    rig = make_rig()
    urgent, other = rig.vfm(slo=0.1), rig.vfm()
    sent = [rig.send(urgent, 20), rig.send(other, 20), rig.send(other, 20)]
    assert sent[0].deadline == pytest.approx(0.1)
    rig.now = 0.055
    assert rig.step() == sent[:2]


@pytest.mark.parametrize(("task", "request_slo", "taken"), [(10.0, 0.03, 1), (0.03, 10.0, 3), (None, 0.03, 1)])
def test_the_slo_of_a_request_goes_before_the_task(
    make_rig: MakeRig, task: float | None, request_slo: float, taken: int
) -> None:
    rig = make_rig()
    vfm = rig.vfm(slo=task)
    rig.send(vfm, 20, slo=request_slo)
    rig.send(rig.vfm(), 20)
    rig.send(rig.vfm(), 20)
    assert len(rig.step()) == taken


def test_adapter_groups_count_towards_the_deadline(make_rig: MakeRig) -> None:
    cost = CostModel(fixed=0.0, per_token=1e-3)
    cost.per_group = 0.1
    rig = make_rig(cost=cost)
    urgent, plain, adapted = rig.vfm(slo=0.1), rig.vfm(), rig.vfm()
    adapted.adapted = True
    sent = [rig.send(vfm, 10) for vfm in (urgent, plain, adapted)]
    assert rig.step() == sent[:2]


def test_the_adapter_of_a_canary_counts_beside_its_tasks(make_rig: MakeRig) -> None:
    cost = CostModel(fixed=0.0, per_token=1e-3)
    cost.per_group = 0.1
    rig = make_rig(cost=cost)
    urgent, own, canary = rig.vfm(slo=0.2), rig.vfm(), rig.vfm()
    canary.id = own.id
    own.adapted = canary.adapted = True
    sent = [rig.send(vfm, 10) for vfm in (urgent, own, canary)]
    assert rig.step() == sent[:2]


def test_fifo_ignores_deadlines(make_rig: MakeRig) -> None:
    rig = make_rig("fifo")
    sent = [rig.send(vfm, 20) for vfm in (rig.vfm(slo=0.03), rig.vfm(), rig.vfm())]
    assert rig.step() == sent


# -- the account


@pytest.mark.parametrize("policy", ALL)
def test_shares_are_proportional_and_sum_to_the_pass(make_rig: MakeRig, policy: str) -> None:
    rig = make_rig(policy)
    one, two = rig.vfm(), rig.vfm()
    batch = [rig.send(one, 100), rig.send(two, 300)]
    if policy == "stfq":
        rounds(rig, 2)
    else:
        rig.step(elapsed=2.0)
        assert [one.service, two.service] == pytest.approx([0.5, 1.5])
    assert all(request.charge == request.service_s == 0 for request in batch)
    assert one.service + two.service == pytest.approx(rig.measured)


def test_measured_time_takes_the_place_of_the_estimate(make_rig: MakeRig) -> None:
    rig = make_rig()
    vfm = rig.vfm(weight=2)
    rig.send(vfm, 100)
    rig.send(vfm, 100)
    batch = rig.choose()
    assert vfm.start == pytest.approx(0.1)  # 200 ms estimated, over a weight of 2
    rig.run(batch, elapsed=1.0)
    assert vfm.start == pytest.approx(0.5)


def test_what_took_part_is_what_is_shared(make_rig: MakeRig) -> None:
    rig = make_rig()
    one, two = rig.vfm(), rig.vfm()
    for vfm in (one, two):
        rig.send(vfm, 100)
    rig.run(rig.choose(), 1.0, portions=[Work(1, 300, 0), Work(1, 100, 0)])
    assert [one.service, two.service] == pytest.approx([0.75, 0.25])
    assert [one.start, two.start] == pytest.approx([0.75, 0.25])


def test_the_passes_of_one_batch_add_up(make_rig: MakeRig) -> None:
    rig = make_rig()
    one, two = rig.vfm(), rig.vfm()
    first, second = rig.send(one, 100), rig.send(two, 100)
    batch = rig.choose()
    rig.scheduler.measure([(first, first.work)], 0.4)
    rig.scheduler.measure([(second, second.work), (first, first.work)], 0.2)
    rig.measured += 0.6
    rig.run(batch, elapsed=0.0)
    assert [one.start, two.start] == pytest.approx([0.5, 0.1])


def test_settling_twice_changes_nothing(make_rig: MakeRig) -> None:
    rig = make_rig()
    vfm = rig.vfm()
    rig.send(vfm)
    rig.send(vfm)
    batch = rig.step(elapsed=3.0)
    start = vfm.start
    rig.scheduler.settle(batch)
    assert vfm.start == start


@pytest.mark.parametrize("policy", FAIR)
def test_an_idle_vfm_banks_no_credit(make_rig: MakeRig, policy: str) -> None:
    rig = make_rig(policy, max_items=1)
    busy, idle = rig.vfm(), rig.vfm()
    for _ in range(40):
        rig.send(busy, 100)
    rounds(rig, 20)
    for _ in range(10):
        rig.send(idle, 100)
    taken = rounds(rig, 10)
    assert sum(request.vfm is idle for request in taken) in (5, 6)


def test_an_arrival_behind_others_changes_no_tag(make_rig: MakeRig) -> None:
    rig = make_rig(max_items=2)
    cheap, other = rig.vfm(), rig.vfm()
    for _ in range(3):
        rig.send(cheap, 100)
        rig.send(other, 10)
    rig.run(rig.choose(), portions=[Work(1, 1, 0), Work(1, 10, 0)])
    rig.run(rig.choose(), portions=[Work(1, 1, 0), Work(1, 10, 0)])
    start = cheap.start
    assert start < rig.scheduler.virtual_time  # it took less than was estimated, and is owed the rest
    rig.send(cheap, 100)
    assert cheap.start == start


def test_the_next_batch_goes_by_settled_tags(make_rig: MakeRig) -> None:
    rig = make_rig(max_items=2)
    dear, other = rig.vfm(), rig.vfm()
    for vfm in (dear, dear, other, other, other):
        rig.send(vfm, 10)
    taken = rig.choose()
    assert [request.vfm for request in taken] == [dear, other]
    rig.run(taken, portions=[Work(1, 1000, 0), Work(1, 10, 0)], elapsed=1.01)
    assert [request.vfm for request in rig.step()] == [other, other]


@pytest.mark.parametrize("policy", FAIR)
def test_a_short_rest_forgives_nothing(make_rig: MakeRig, policy: str) -> None:
    rig = make_rig(policy, max_items=1)
    greedy, other = rig.vfm(), rig.vfm()
    rig.send(greedy, 500)
    rig.step()
    rig.send(greedy, 10)
    for _ in range(60):
        rig.send(other, 10)
    assert all(request.vfm is other for request in rounds(rig, 50))


@pytest.mark.parametrize("policy", FAIR)
def test_what_failed_before_it_ran_gets_its_charge_back(make_rig: MakeRig, policy: str) -> None:
    rig = make_rig(policy)
    vfm, other = rig.vfm(), rig.vfm()
    rig.send(vfm, 100)
    rig.step()
    before = vfm.start
    rig.send(other, 300)
    rig.step()
    rig.send(vfm, 200)
    rig.send(vfm, 200)
    start = vfm.start
    assert start >= before
    batch = rig.choose()
    rig.run(batch, failed=batch)
    assert vfm.start == pytest.approx(start)
    assert vfm.service == pytest.approx(0.1)


def test_the_others_of_its_batch_pay_for_the_pass(make_rig: MakeRig) -> None:
    rig = make_rig()
    lucky, failing = rig.vfm(), rig.vfm()
    rig.send(lucky, 100)
    failed = rig.send(failing, 100)
    rig.run(rig.choose(), 1.0, failed=[failed])
    assert [lucky.service, failing.service] == pytest.approx([1.0, 0.0])
    assert failing.start == pytest.approx(0.0)


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("gone", [slice(0, 1), slice(1, 3), slice(3, 4), slice(0, 4)])
def test_discarded_requests_are_never_charged(make_rig: MakeRig, policy: str, gone: slice) -> None:
    rig = make_rig(policy)
    vfm, other = rig.vfm(), rig.vfm()
    sent = [rig.send(vfm, 100) for _ in range(4)]
    behind = rig.send(other)
    start = vfm.start
    rig.discard(vfm, sent[gone])
    assert vfm.start == start
    assert vfm.depth == 4 - len(sent[gone])
    left = [request for request in (*sent, behind) if not request.resolved]
    taken = rounds(rig, len(left) if policy == "stfq" else 1)
    assert sorted(taken, key=lambda request: request.admission_number) == left


def test_discarding_the_oldest_passes_its_place_on(make_rig: MakeRig) -> None:
    rig = make_rig("fifo", max_items=1)
    one, two = rig.vfm(), rig.vfm()
    first, second, third = rig.send(one), rig.send(two), rig.send(one)
    rig.discard(one, [first])
    assert rounds(rig, 2) == [second, third]


# -- weights that change


@pytest.mark.parametrize("policy", FAIR)
def test_a_new_weight_counts_from_the_next_request(make_rig: MakeRig, policy: str) -> None:
    rig = make_rig(policy, max_items=2)
    changing, other = rig.vfm(), rig.vfm()
    for _ in range(400):
        rig.send(changing)
        rig.send(other)
    count = 40 * (1 if policy == "bfq" else 2)
    before = rounds(rig, count)
    changing.weight = 3.0
    after = rounds(rig, count)
    assert sum(request.vfm is changing for request in before) == pytest.approx(40, abs=2)
    assert sum(request.vfm is changing for request in after) == pytest.approx(60, abs=2)


def test_a_weight_that_changes_during_a_pass_leaves_no_trace(make_rig: MakeRig) -> None:
    rig = make_rig()
    vfm = rig.vfm(weight=100)
    rig.send(vfm, 100)
    batch = rig.choose()
    vfm.weight = 0.01
    rig.run(batch, failed=batch)
    assert vfm.start == pytest.approx(0.0)


# -- sequences of many steps


@pytest.mark.parametrize("policy", ALL)
def test_a_running_sequence_comes_back(make_rig: MakeRig, policy: str) -> None:
    rig = make_rig(policy)
    vfm = rig.vfm()
    sequence = rig.send(vfm, 10, steps=3)
    assert [rig.step() for _ in range(3)] == [[sequence]] * 3
    assert vfm.service == pytest.approx(0.03)
    assert vfm.depth == 0


def test_sequences_join_and_leave_step_by_step(make_rig: MakeRig) -> None:
    rig = make_rig(max_items=2)
    one, two = rig.vfm(), rig.vfm()
    long = rig.send(one, 10, steps=4)
    assert rig.step() == [long]
    short = rig.send(two, 10, steps=2)
    assert [set(rig.step()) for _ in range(2)] == [{long, short}] * 2
    assert rig.step() == [long]


@pytest.mark.parametrize("policy", ALL)
def test_sequences_of_one_vfm_keep_their_order(make_rig: MakeRig, policy: str) -> None:
    rig = make_rig(policy, max_items=3)
    vfm = rig.vfm()
    sent = [rig.send(vfm, 10, steps=2) for _ in range(4)]
    rig.step()
    assert list(vfm.queue) == sent


def test_a_returning_sequence_takes_its_place_in_fifo_again(make_rig: MakeRig) -> None:
    rig = make_rig("fifo", max_items=1)
    one, two = rig.vfm(), rig.vfm()
    sequence = rig.send(one, steps=3)
    others = [rig.send(two), rig.send(one), rig.send(two)]
    assert rounds(rig, 6) == [sequence] * 3 + others


def test_a_sequence_is_charged_step_by_step(make_rig: MakeRig) -> None:
    rig = make_rig(max_items=1)
    sequences, single = rig.vfm(), rig.vfm()
    rig.send(sequences, 10, steps=20)
    for _ in range(20):
        rig.send(single, 10)
    taken = rounds(rig, 20)
    assert sum(request.vfm is sequences for request in taken) == 10


# -- preparation


@pytest.mark.parametrize("policy", FAIR)
def test_who_takes_long_to_prepare_is_served_less(make_rig: MakeRig, policy: str) -> None:
    rig = make_rig(policy, max_items=1)
    slow, quick = rig.vfm(), rig.vfm()
    for _ in range(20):
        rig.send(slow, 10, preparation=0.03)
        rig.send(quick, 10)
    taken = rounds(rig, 20)
    assert sum(request.vfm is slow for request in taken) == 4  # 40 ms each against 10 ms


def test_a_sequence_is_charged_for_its_preparation_once(make_rig: MakeRig) -> None:
    rig = make_rig()
    vfm = rig.vfm(2)
    rig.send(vfm, 10, steps=3, preparation=0.5)
    rounds(rig, 3)
    assert (vfm.preparation_s, vfm.service) == pytest.approx((0.5, 0.03))
    assert vfm.start == pytest.approx((0.5 + 0.03) / 2)


def test_a_refused_request_is_charged_for_its_preparation(make_rig: MakeRig) -> None:
    rig = make_rig(max_items=1)
    busy, refused = rig.vfm(), rig.vfm()
    for _ in range(3):
        rig.send(busy, 10)
    rig.step()
    rig.refuse(refused, 0.5)
    assert refused.start == rig.scheduler.virtual_time + 0.5
    rig.send(refused, 10)
    assert [request.vfm for request in rounds(rig, 3)] == [busy, busy, refused]


def test_who_was_refused_alone_owes_nothing_to_those_who_come_later(make_rig: MakeRig) -> None:
    rig = make_rig(max_items=1)
    refused, late = rig.vfm(), rig.vfm()
    for _ in range(9):
        rig.refuse(refused, 1.0)
    rig.send(late, 10)
    rig.send(refused, 10)
    assert refused.start - late.start == pytest.approx(1.0)  # the last one, as if it had just run


def test_how_far_a_vfm_is_ahead_of_its_share(make_rig: MakeRig) -> None:
    rig = make_rig(max_items=1)
    one, two = rig.vfm(2), rig.vfm()
    rig.send(one, 10, preparation=0.25)
    rig.send(one, 10)
    assert rig.scheduler.ahead_s(one) == 0.0, "nobody else has anything queued"
    rig.send(two, 10)
    rig.send(two, 10)
    assert rig.scheduler.ahead_s(one) == pytest.approx(0.25), "of preparing what waits"
    rig.step()
    assert rig.scheduler.ahead_s(one) == pytest.approx(0.25 + 0.01)
    assert rig.scheduler.ahead_s(two) == 0.0


# -- the rest


def test_a_policy_has_to_say_both_things(make_rig: MakeRig) -> None:
    scheduler = Scheduler(CostModel(), max_items=1)
    with pytest.raises(NotImplementedError):
        scheduler.rank(make_rig().vfm())
    with pytest.raises(NotImplementedError):
        scheduler.joins(0.0, 0.0)


def test_a_batch_says_when_and_with_how_many_it_ran(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.now = 7.0
    sent = [rig.send(rig.vfm(), items=items) for items in (2, 5)]
    rig.step()
    assert [(request.scheduled_at, request.batch_items) for request in sent] == [(7.0, 7)] * 2
