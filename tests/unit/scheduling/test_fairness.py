"""The theorem of docs/tune-fairness.md, with its own constants, on random histories.

In virtual seconds (seconds over weight), for vFM i and up to now:

    largest   l_i   the largest estimate of one request, with the seconds of preparing it
    under     u_i   the most that its requests of one batch together took longer than estimated
    over      o_i   the most that its requests of one batch together took less than estimated
    early     e_i   the most by which its tag was ahead of V, or of the tag whose turn it was, when a request of it
                    was taken before its turn: since all its rows ran anyway, or for what it found in memory
    dropped   d_i   the most seconds of preparing requests that were refused or dropped since it was last scheduled

W_i is the service of i, and the seconds of preparing its requests that it was charged for.
Between two batches, where i has something queued:     V - o_i <= start_i <= V + a_i, with a_i = l_i + u_i + e_i + d_i.
Hence, while i and j both always have something queued:  |W_i/w_i - W_j/w_j| <= a_i + o_i + a_j + o_j.
Hence a head waits while the others get at most the sum over j of w_j * (a_i + a_j + o_j) seconds.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmplex_backend.scheduling import Bfq, CostModel, Locality, Scheduler, scheduler
from fmplex_backend.types import Kept, PassShape, Request, Vfm, Work

if TYPE_CHECKING:
    from conftest import MakeRig, Rig


@dataclass(frozen=True)
class Scenario:
    """A random history; the same one every time it is run."""

    seed: int
    weights: tuple[float, ...]
    greedy: int  # the first so many vFMs always have something queued
    max_items: int
    max_tokens: int | None
    error: float  # spread of the estimates' errors: of a batch, and of each request in it
    steps: int  # a request takes up to so many
    trouble: float  # how often requests are discarded, or fail before they run
    slo: float | None
    learns: bool  # the cost model, meanwhile
    preparation: float  # mean seconds of preparing a request
    texts: int = 0  # rows are one of so many, and those that are equal are shared; 0: nothing is
    efficiency: float = 1.0  # the part of a full batch's throughput at which a batch ends
    quantum: float = 0.0  # seconds by which requests that find something in memory may go before their turn


SCENARIOS = st.builds(
    Scenario,
    seed=st.integers(0, 2**32 - 1),
    weights=st.lists(st.floats(0.05, 20), min_size=2, max_size=6).map(tuple),
    greedy=st.integers(0, 6),
    max_items=st.integers(1, 32),
    max_tokens=st.none() | st.integers(64, 4096),
    error=st.sampled_from([0.0, 0.1, 0.5, 1.5]),
    steps=st.integers(1, 4),
    trouble=st.sampled_from([0.0, 0.05]),
    slo=st.none() | st.floats(1e-3, 0.3),
    learns=st.booleans(),
    preparation=st.sampled_from([0.0, 1e-3, 0.1]),
    texts=st.sampled_from([0, 0, 1, 5, 40]),
    efficiency=st.sampled_from([1.0, 0.95, 0.6]),
    quantum=st.sampled_from([0.0, 0.0, 0.05, 2.0]),
)
ROUNDS = 60


class Watch:
    """Looks at a rig between its batches and checks the theorem with the constants up to now.

    Without `tags` it believes nothing but the seconds that were measured.
    """

    def __init__(self, rig: Rig, *, tags: bool = True) -> None:
        self.rig, self.tags = rig, tags
        count = len(rig.vfms)
        self.largest, self.under, self.over = [0.0] * count, [0.0] * count, [0.0] * count
        self.dropped, self._dropped = [0.0] * count, [0.0] * count
        self.early = [0.0] * count
        self.worst = 0.0  # of the differences seen, as a part of the bound
        self._batch: dict[Vfm, tuple[float, float]] = {}
        self._range: dict[tuple[Vfm, Vfm], tuple[float, float]] = {}
        self._since: dict[Vfm, float] = {}
        rig.watches.append(self._settling)
        self._schedule = rig.scheduler._schedule
        setattr(rig.scheduler, "_schedule", self._scheduled)  # noqa: B010  mypy takes it for a method that is overwritten

    def before(self) -> None:
        """Arrivals are in; the batch is not formed yet."""
        backlogged = [vfm for vfm in self.rig.vfms if vfm.queue]
        for vfm in backlogged:
            self._since.setdefault(vfm, self.rig.measured)
        for pair in combinations(backlogged, 2):
            self._range.setdefault(pair, (self.difference(pair), self.difference(pair)))

    def emptied(self) -> None:
        """Requests left the queues: a vFM without any is not backlogged through this."""
        self._range = {(i, j): seen for (i, j), seen in self._range.items() if i.queue and j.queue}
        self._since = {vfm: since for vfm, since in self._since.items() if vfm.queue}

    def taken(self, batch: Sequence[Request]) -> None:
        """A batch is formed: whose turn came, and how long did its head wait?"""
        for vfm in {request.vfm for request in batch}:
            self._dropped[vfm.id] = 0.0
            waited = self.rig.measured - self._since.pop(vfm)
            assert waited <= self._wait_bound(vfm) + self._slack(), "starved"
        self.emptied()

    def drops(self, vfm: Vfm, seconds: float) -> None:
        """Requests that took so long to prepare are about to be refused or dropped."""
        self._dropped[vfm.id] += seconds / vfm.weight
        self.dropped[vfm.id] = max(self.dropped[vfm.id], self._dropped[vfm.id])

    def after(self) -> None:
        """The batch is settled."""
        for vfm, (under, over) in self._batch.items():
            self.under[vfm.id] = max(self.under[vfm.id], under)
            self.over[vfm.id] = max(self.over[vfm.id], over)
        self._batch.clear()
        if self.tags:
            self._check_tags()
        for pair, (low, high) in self._range.items():
            difference = self.difference(pair)
            self._range[pair] = low, high = min(low, difference), max(high, difference)
            seen, bound = max(difference - low, high - difference), self.bound(*pair)
            assert seen <= bound + self._slack(), "unfair"
            self.worst = max(self.worst, seen / bound if bound else 0.0)

    def bound(self, one: Vfm, two: Vfm) -> float:
        """The theorem's."""
        return sum(self._ahead(vfm) + self.over[vfm.id] for vfm in (one, two))

    def _ahead(self, vfm: Vfm) -> float:
        return self.largest[vfm.id] + self.under[vfm.id] + self.early[vfm.id] + self.dropped[vfm.id]

    def _scheduled(self, request: Request, now: float, work: Work, turn: float) -> None:
        vfm, locality = request.vfm, self.rig.scheduler.locality
        lead = vfm.start - turn
        quantum = max(locality.quantum if locality else 0.0, scheduler.EARLY_S)
        assert lead <= quantum / vfm.weight + self._slack()
        self.early[vfm.id] = max(self.early[vfm.id], lead)
        self._schedule(request, now, work, turn)

    def _check_tags(self) -> None:
        now = self.rig.scheduler.virtual_time
        for vfm in self.rig.vfms:
            assert vfm.start <= now + self._ahead(vfm) + self._slack(), "too far ahead"
            if vfm.queue:
                assert vfm.start >= now - self.over[vfm.id] - self._slack(), "too far behind"

    def _wait_bound(self, vfm: Vfm) -> float:
        return sum(
            other.weight * (self._ahead(vfm) + self._ahead(other) + self.over[other.id])
            for other in self.rig.vfms
            if other is not vfm
        )

    def _settling(self, requests: Sequence[Request]) -> None:
        for request in requests:
            vfm = request.vfm
            late = request.service_s / vfm.weight - request.charge
            under, over = self._batch.get(vfm, (0.0, 0.0))
            self._batch[vfm] = (under + max(late, 0.0), over + max(-late, 0.0))
            charge = request.charge + self.rig.preparation.get(request, 0.0) / vfm.weight
            self.largest[vfm.id] = max(self.largest[vfm.id], charge)

    def difference(self, pair: tuple[Vfm, Vfm]) -> float:
        """In service over weight."""
        one, two = ((vfm.service + vfm.preparation_s) / vfm.weight for vfm in pair)
        return one - two

    def _slack(self) -> float:
        largest = max(self.rig.scheduler.virtual_time, *(vfm.start for vfm in self.rig.vfms))
        return 1e-9 * (1.0 + largest)  # of floating point, nothing else


class World:
    """Random arrivals and a backbone that takes what the estimates do not say."""

    def __init__(self, rig: Rig, scenario: Scenario, *, tags: bool = True) -> None:
        self.rig, self.scenario = rig, scenario
        self.random = random.Random(scenario.seed)
        for weight in scenario.weights:
            rig.vfm(weight, scenario.slo)
        self.bias = [self.random.lognormvariate(0, scenario.error) for _ in rig.vfms]  # of a task's estimates
        self.watch = Watch(rig, tags=tags)
        self.found: dict[Request, int] = {}  # in memory for it, when it was first asked about
        if scenario.quantum:
            rig.scheduler.locality = Locality(scenario.quantum, self.kept)

    def kept(self, request: Request) -> Kept | None:
        """What is in memory for a request, and whether it fits: at random."""
        if request.batch_items:  # it was in a batch
            return None
        found = self.found.setdefault(request, self.random.choice((0, 0, self.random.randint(1, 99))))
        return Kept(found, fits=self.random.random() < 0.7, displaces=self.random.random() < 0.7)

    def play(self) -> None:
        """All rounds; what is still queued then is the rig's to finish."""
        for round_ in range(ROUNDS):
            self._trouble()
            self.arrive(round_)
            self.watch.before()
            batch = self.rig.choose()
            self.watch.taken(batch)
            if batch:
                self.run(batch)
            self.watch.after()

    def arrive(self, round_: int) -> None:
        """The greedy are never without; the others come in bursts, with rests in between."""
        for vfm in self.rig.vfms:
            count = self.random.choice((0, 0, 0, 1, 5)) if (round_ // 10 + vfm.id) % 2 else 0
            if vfm.id < self.scenario.greedy:
                count = max(0, self.scenario.max_items + 1 - len(vfm.queue))
            for _ in range(count):
                items = self.random.choice((1, 1, self.random.randint(1, 32)))
                tokens = items * self.random.randint(8, 512)
                steps = self.random.randint(1, self.scenario.steps)
                if keys := self._keys(items):
                    tokens = 8 + 61 * keys[0][0] % 505  # of each row
                self.rig.send(vfm, tokens, items=items, steps=steps, preparation=self._preparation(), keys=keys)

    def _keys(self, items: int) -> list[tuple[int, int]]:
        """Of a request's rows: the first ones of a text."""
        if not self.scenario.texts:
            return []
        text = self.random.randrange(self.scenario.texts)
        return [(text, row) for row in range(items)]

    def _preparation(self) -> float:
        mean = self.scenario.preparation
        return self.random.expovariate(1 / mean) if mean else 0.0

    def _trouble(self) -> None:
        for vfm in self.rig.vfms:
            gone = [request for request in vfm.queue if self.random.random() < self.scenario.trouble]
            if gone:
                self.watch.drops(vfm, sum(request.preparation_s for request in gone))
                self.rig.discard(vfm, gone)
            if self.random.random() < self.scenario.trouble:
                self.watch.drops(vfm, seconds := self._preparation())
                self.rig.refuse(vfm, seconds)
        self.watch.emptied()

    def run(self, batch: Sequence[Request]) -> None:
        """One batch."""
        rig, error = self.rig, self.scenario.error
        works = []
        for request, work in zip(batch, rig.shares(batch), strict=True):
            longer = self.bias[request.vfm.id] * self.random.lognormvariate(0, error)
            works.append(Work(work.items, work.tokens * longer, work.area * longer**2) if error else work)
        failed = [request for request in batch if self.random.random() < self.scenario.trouble]
        elapsed = sum(rig.cost.portion(w) for r, w in zip(batch, works, strict=True) if r not in failed)
        elapsed *= self.random.lognormvariate(0, error)
        rig.run(batch, elapsed, portions=works, failed=failed)
        if self.scenario.learns and elapsed:
            tokens = round(sum(work.tokens for work in works))
            rig.cost.observe(PassShape(tokens, 128, 0), len(batch), elapsed)


def make(rigs: type[Rig], scenario: Scenario, policy: str | type[Scheduler]) -> Rig:
    """A rig for a scenario."""
    cost = CostModel(fixed=2e-3, per_token=2e-6, per_area=1e-9)
    return rigs(
        policy,
        max_items=scenario.max_items,
        max_tokens=scenario.max_tokens,
        cost=cost,
        efficiency=scenario.efficiency,
    )


def play(rig: Rig, watch: Watch, batches: int) -> None:
    """Run batches as estimated, watched."""
    for _ in range(batches):
        watch.before()
        watch.taken(batch := rig.choose())
        rig.run(batch)
        watch.after()


# -- (a) to (e): the bound, work and service conserved (the rig's), no starvation, no credit


@pytest.mark.parametrize("policy", ["bfq", "stfq"])
@settings(max_examples=150)
@given(scenario=SCENARIOS)
def test_the_theorem_holds(rigs: type[Rig], policy: str, scenario: Scenario) -> None:
    with make(rigs, scenario, policy) as rig:
        World(rig, scenario).play()


@settings(max_examples=30)
@given(scenario=SCENARIOS)
def test_fifo_conserves_work_and_service_too(rigs: type[Rig], scenario: Scenario) -> None:
    with make(rigs, scenario, "fifo") as rig:
        world = World(rig, scenario)
        for round_ in range(20):
            world.arrive(round_)
            if batch := rig.choose():
                world.run(batch)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), rest=st.integers(1, 40))
def test_who_rests_comes_back_like_one_that_is_new(rigs: type[Rig], seed: int, rest: int) -> None:
    random_ = random.Random(seed)
    with rigs(max_items=random_.randint(1, 16)) as rig:
        rested, busy, new = (rig.vfm(random_.uniform(0.1, 10)) for _ in range(3))
        rig.send(rested, random_.randint(1, 100))
        for _ in range(400):
            rig.send(busy, 100)
        for _ in range(rest + 5):
            rig.step()
        now = rig.scheduler.virtual_time
        if rested.start <= now:
            for vfm in (rested, new):
                rig.send(vfm, 10)
            assert rested.start == new.start == now


def test_the_bound_is_reached(make_rig: MakeRig) -> None:
    rig = make_rig(max_items=1)
    rig.vfm(), rig.vfm()
    one, two = rig.vfms
    watch = Watch(rig)
    rig.send(one, 1000)
    rig.send(two, 999)
    for vfm in (one, two, two, two):
        rig.send(vfm, 1000)
    play(rig, watch, 3)
    assert watch.worst > 0.999


@pytest.mark.parametrize(("max_items", "efficiency"), [(1, 1.0), (8, 1.0), (32, 1.0), (32, 0.6)])
def test_batching_costs_no_fairness_where_estimates_are_exact(
    make_rig: MakeRig, max_items: int, efficiency: float
) -> None:
    rig = make_rig(max_items=max_items, efficiency=efficiency)
    one, two = rig.vfm(3), rig.vfm(1)
    watch = Watch(rig)
    for _ in range(900):
        rig.send(one, 100)
        rig.send(two, 100)
    play(rig, watch, 900 // max_items)
    assert watch.bound(one, two) == pytest.approx(0.1 / 3 + 0.1)  # Goyal's: one request of each, whatever Bmax


# -- and the checks can fail


def test_fifo_breaks_the_bound(make_rig: MakeRig) -> None:
    rig = make_rig("fifo", max_items=4)
    greedy, late = rig.vfm(), rig.vfm()
    watch = Watch(rig, tags=False)
    for vfm in (greedy, late):
        for _ in range(50):
            rig.send(vfm, 100)
    with pytest.raises(AssertionError, match="unfair"):
        play(rig, watch, 12)
    assert watch.difference((greedy, late)) > watch.bound(greedy, late)


class Unsettled(Bfq):
    """Goes by estimates alone."""

    def settle(self, requests: Iterable[Request]) -> None:
        """Forget what was measured."""
        for request in requests:
            request.charge = request.service_s = 0.0


class Unprepared(Bfq):
    """Prepares requests for nothing."""

    def _charge_preparation(self, request: Request) -> None:
        request.vfm.preparation_s += request.preparation_s
        request.preparation_s = 0.0


class Weightless(Bfq):
    """Takes all weights for equal."""

    def rank(self, vfm: Vfm) -> float:
        """As if the weight were one."""
        return vfm.start * vfm.weight


class Banking(Bfq):
    """Lets who was idle catch up."""

    def admit(self, request: Request) -> None:
        """Keep the old tag."""
        start = request.vfm.start
        super().admit(request)
        request.vfm.start = start
        self._place(request.vfm)


class Youngest(Bfq):
    """Largest tag first."""

    def rank(self, vfm: Vfm) -> float:
        """Upside down."""
        return -vfm.start


@pytest.mark.parametrize(
    ("mutant", "preparation"), [(Unsettled, 0.0), (Weightless, 0.0), (Youngest, 0.0), (Unprepared, 0.1)]
)
def test_a_mutant_is_caught(rigs: type[Rig], mutant: type[Scheduler], preparation: float) -> None:
    caught = 0
    for seed in range(20):
        scenario = Scenario(seed, (1.0, 4.0, 0.5, 2.0), 3, 8, None, 1.0, 1, 0.0, None, False, preparation)
        try:
            World(make(rigs, scenario, mutant), scenario, tags=False).play()
        except AssertionError:
            caught += 1
    assert caught >= 15  # where estimates happen to be right, there is nothing to settle


@pytest.mark.parametrize(("policy", "fair"), [(Bfq, True), (Banking, False)])
def test_credit_for_rest_is_caught(rigs: type[Rig], policy: type[Scheduler], fair: bool) -> None:
    rig = rigs(policy, max_items=4)
    busy, rested = rig.vfm(), rig.vfm()
    watch = Watch(rig, tags=False)
    for _ in range(200):
        rig.send(busy, 100)
    play(rig, watch, 20)
    for _ in range(200):
        rig.send(rested, 100)
    if fair:
        play(rig, watch, 20)
        rig.finish()
    else:
        with pytest.raises(AssertionError, match="unfair"):
            play(rig, watch, 20)


# -- (f) what it costs


class Tag(float):
    """A rank that counts how often it is compared: once with == per comparison of two entries."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Tag.compared += 1
        return float.__eq__(self, other)

    __hash__ = float.__hash__


class Counting(Bfq):
    """Its heap's comparisons are counted."""

    def rank(self, vfm: Vfm) -> float:
        """Counted."""
        return Tag(vfm.start)


class Heap:
    """heapq, counted: operations, and entries that compaction looks at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pushes = self.pops = self.compactions = self.compacted = self.largest = 0
        for name in ("heappush", "heappop", "heapify"):
            monkeypatch.setattr(scheduler, name, getattr(self, name))

    def heappush(self, heap: list[tuple[float, int, int, Vfm]], entry: tuple[float, int, int, Vfm]) -> None:
        heapq.heappush(heap, entry)
        self.pushes += 1
        self.largest = max(self.largest, len(heap))

    def heappop(self, heap: list[tuple[float, int, int, Vfm]]) -> tuple[float, int, int, Vfm]:
        self.pops += 1
        return heapq.heappop(heap)

    def heapify(self, heap: list[tuple[float, int, int, Vfm]]) -> None:
        self.compactions += 1
        self.compacted += len(heap)  # the valid ones; the stale ones it drops are counted by `pushes`
        heapq.heapify(heap)


@pytest.mark.parametrize("max_items", [1, 8, 32])
@pytest.mark.parametrize("count", [10, 100, 1000])
def test_operations_grow_with_the_logarithm(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, rng: random.Random, count: int, max_items: int
) -> None:
    rig = make_rig(Counting, max_items=max_items)
    vfms = [rig.vfm(rng.uniform(0.1, 10)) for _ in range(count)]
    for vfm in vfms:
        for _ in range(2):
            rig.send(vfm, rng.randint(8, 512))
    heap = Heap(monkeypatch)
    Tag.compared = requests = 0
    while requests < 6000:
        batch = rig.choose()
        rig.run(batch, sum(rig.cost.portion(r.work) for r in batch) * rng.lognormvariate(0, 0.5))
        for request in batch:
            rig.send(request.vfm, rng.randint(8, 512))
        requests += len(batch)
        assert len(rig.scheduler._heap) <= 64 + 4 * rig.scheduler.backlogged + 1
    assert heap.pushes <= 3 * requests  # at most: it becomes a head, it is taken, it is settled
    assert heap.pops <= heap.pushes
    assert heap.compacted <= heap.pushes / 3  # a compaction drops at least three times what it keeps
    assert heap.largest <= 64 + 4 * count + 1
    print(
        count,
        max_items,
        Tag.compared / requests,
        heap.pushes / requests,
        heap.pops / requests,
        heap.compacted / requests,
    )
    depth = math.log2(64 + 4 * count)
    assert Tag.compared / requests <= 2 * (depth + 2)  # the heap's head goes, its next one comes


def test_the_heap_forgets_vfms_that_are_gone(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig()
    heap = Heap(monkeypatch)
    for _ in range(5000):
        vfm = rig.vfm()
        rig.discard(vfm, [rig.send(vfm)])
    assert heap.largest <= 64 + 4 + 1
    assert heap.compactions <= heap.pushes / 64
