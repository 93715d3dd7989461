"""The bound for sequences of docs/tune-fairness.md, with its own constants, on random histories.

Beside the constants of tests/unit/scheduling/test_fairness.py, in virtual seconds (seconds over weight):

    rest    r_i   the most that its sequences which had begun at one time still needed to their ends
    early   e_i   the most by which its tag was ahead of the one whose turn it was, when a sequence of it began before
    held    h_i   the most by which it may be behind and have its prompts wait for others' sake, and the most that one
                  vFM was charged for a step; 0 where none wait

Between two batches, where i has something queued:   start_i >= V - o_i - h_i - max over j of (l_j + u_j + e_j + r_j)
Hence, while i and j both always have something queued:
    |W_i/w_i - W_j/w_j| <= l_i + u_i + e_i + o_i + h_i + l_j + u_j + e_j + o_j + h_j
                           + 2 max over k of (l_k + u_k + e_k + r_k)
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmplex_backend.families.causal_lm.memory import Memory
from fmplex_backend.families.causal_lm.prefill_budget import PrefillBudget
from fmplex_backend.scheduling import Bfq, CostModel, Locality, Scheduler
from fmplex_backend.types import Request, Vfm, Work

SIZE, CHUNK, ROUNDS = 4, 8, 120


@dataclass(frozen=True)
class Scenario:
    """A random history; the same one every time it is run."""

    seed: int
    weights: tuple[float, ...]
    greedy: int  # the first so many vFMs always have something queued
    max_items: int
    blocks: int
    longest: int  # tokens of a prompt, and of an answer
    words: int  # so many different tokens: the fewer, the more is found in memory
    noise: float  # a batch takes up to so many times longer or shorter than estimated
    limited: bool  # the last vFM has limits of its own
    quantum: float = 0.0  # `locality_s`
    lag: float = 0.0  # seconds by which a vFM may be behind and have its prompts wait for others' sake


SCENARIOS = st.builds(
    Scenario,
    seed=st.integers(0, 2**32 - 1),
    weights=st.lists(st.floats(0.1, 10), min_size=2, max_size=5).map(tuple),
    greedy=st.integers(0, 5),
    max_items=st.integers(1, 12),
    blocks=st.integers(10, 200),
    longest=st.integers(1, 20),
    words=st.sampled_from([1, 2, 1000]),
    noise=st.sampled_from([1.0, 1.5]),
    limited=st.booleans(),
    quantum=st.sampled_from([0.0, 0.01, 0.1, 2.0]),
)


class State:
    """A sequence: its tokens, how many of them are computed, and how many it will have."""

    def __init__(self, tokens: list[int], length: int) -> None:
        self.tokens, self.length, self.computed = tokens, length, 0

    @property
    def works(self) -> list[Work]:
        """Of all its steps from here on."""
        found, computed, known = [], self.computed, len(self.tokens)
        while computed < self.length:
            end = min(computed + CHUNK, known)
            found.append(Work(1, end - computed, (end - computed) * end))
            computed, known = end, known + (end == known)
        return found


class World:
    """The scheduler and the memory, as the engine uses them, over sequences that make random tokens."""

    def __init__(self, scenario: Scenario, policy: type[Scheduler] = Bfq) -> None:
        self.scenario, self.random = scenario, random.Random(scenario.seed)
        self.cost = CostModel(fixed=1e-3, per_token=1e-3, per_area=1e-5)
        self.memory = Memory(scenario.blocks, SIZE, self.tokens, self.moved, locality_s=scenario.quantum)
        locality = Locality(scenario.quantum, self.memory.kept) if scenario.quantum else None
        self.scheduler = policy(
            self.cost, max_items=scenario.max_items, has_room=self.memory.has_room, locality=locality
        )
        self._schedule = self.scheduler._schedule
        setattr(self.scheduler, "_schedule", self.scheduled)  # noqa: B010  mypy takes it for a method that is overwritten
        self.vfms = [Vfm(number, f"task{number}", weight=weight) for number, weight in enumerate(scenario.weights)]
        if scenario.limited:
            self.vfms[-1].max_running, self.vfms[-1].max_kv_share = 2, 0.3
        self.state: dict[Request, State] = {}
        self.measured = 0.0
        self.recomputed = 0
        self.computed = self.found = self.began_early = 0  # tokens, tokens, sequences
        self.largest, self.under, self.over, self.rest, self.early = ([0.0] * len(self.vfms) for _ in range(5))
        self.range: dict[tuple[Vfm, Vfm], tuple[float, float]] = {}

    def tokens(self, request: Request) -> list[int]:
        return self.state[request].tokens

    def moved(self, request: Request, computed: int) -> None:
        state = self.state[request]
        self.found += computed
        self.recomputed += max(0, state.computed - computed)
        state.computed = computed
        request.work = state.works[0]

    def send(self, vfm: Vfm) -> None:
        words = self.scenario.words
        prompt = [self.random.randrange(words) for _ in range(self.random.randint(1, self.scenario.longest))]
        request = Request(vfm, {}, (), 0.0, lambda *_: None, extensions=vfm)
        self.state[request] = State(prompt, len(prompt) + self.random.randint(0, self.scenario.longest))
        request.work = self.state[request].works[0]
        self.scheduler.admit(request)

    def arrive(self, round_: int) -> None:
        """The greedy are never without; the others come in bursts, with rests in between."""
        for vfm in self.vfms:
            count = self.random.choice((0, 0, 0, 1, 4)) if (round_ // 20 + vfm.id) % 2 else 0
            if vfm.id < self.scenario.greedy:
                count = max(0, self.scenario.max_items + 1 - len(vfm.queue))
            for _ in range(count):
                self.send(vfm)

    def step(self) -> list[Request]:
        """One batch, as the engine has it."""
        batch = self.scheduler.choose(0.0)
        self.taken(batch)
        self.memory.begin()
        works = [(request, request.work) for request in batch]
        estimate = sum(self.cost.portion(work) for _, work in works)
        elapsed = estimate * self.scenario.noise ** self.random.uniform(-1, 1)
        self.measured += elapsed
        for request in batch:
            self.advance(request)
        self.scheduler.measure(works, elapsed)
        self.settling(batch)
        self.scheduler.settle(batch)
        for request in batch:
            if self.state[request].computed < self.state[request].length:
                self.scheduler.requeue(request)
            else:
                self.memory.release(request)
                del self.state[request]
        self.check()
        return batch

    def advance(self, request: Request) -> None:
        state = self.state[request]
        state.computed += int(request.work.tokens)
        self.computed += int(request.work.tokens)
        self.memory.keep(request, state.computed)
        if state.computed == len(state.tokens) < state.length:
            state.tokens.append(self.random.randrange(self.scenario.words))
        if works := state.works:
            request.work = works[0]

    # -- what is checked

    def scheduled(self, request: Request, now: float, work: Work, turn: float) -> None:
        vfm = request.vfm
        lead = vfm.start - turn
        assert lead * vfm.weight <= self.scenario.quantum + 1e-9
        if lead > 0:
            assert not self.state[request].computed or self.state[request].computed % SIZE == 0, "it has begun"
            self.began_early += 1
        self.early[vfm.id] = max(self.early[vfm.id], lead)
        self._schedule(request, now, work, turn)

    def taken(self, batch: Sequence[Request]) -> None:
        """The constants so far, and which pairs go on being backlogged."""
        for vfm in self.vfms:
            begun = [request for request in self.memory.blocks_of if request.vfm is vfm]
            rest = sum(self.cost.portion(work) for request in begun for work in self.state[request].works)
            self.rest[vfm.id] = max(self.rest[vfm.id], self.scenario.noise * rest / vfm.weight)
        waiting = [vfm for vfm in self.vfms if vfm.queue and not vfm.max_running]
        for pair in combinations(waiting, 2):
            self.range.setdefault(pair, (self.difference(pair), self.difference(pair)))
        self.range = {pair: seen for pair, seen in self.range.items() if pair[0].queue and pair[1].queue}

    def settling(self, batch: Sequence[Request]) -> None:
        under, over = [0.0] * len(self.vfms), [0.0] * len(self.vfms)
        for request in batch:
            own = request.vfm.id
            late = request.service_s / request.vfm.weight - request.charge
            under[own] += max(late, 0.0)
            over[own] += max(-late, 0.0)
            self.largest[own] = max(self.largest[own], request.charge)
        self.under = [max(pair) for pair in zip(self.under, under, strict=True)]
        self.over = [max(pair) for pair in zip(self.over, over, strict=True)]

    def check(self) -> None:
        now, slack = self.scheduler.virtual_time, 1e-9 * (1 + self.scheduler.virtual_time)
        assert sum(vfm.service for vfm in self.vfms) == pytest.approx(self.measured)
        behind = self.behind()
        for vfm in self.vfms:
            ahead = self.largest[vfm.id] + self.under[vfm.id] + self.early[vfm.id]
            assert vfm.start <= now + ahead + slack, "too far ahead"
            begun = [request in self.memory.blocks_of for request in vfm.queue]
            assert begun == sorted(begun, reverse=True), "one that has begun stands behind one that has not"
            numbers = [request.admission_number for request in vfm.queue]
            assert numbers == sorted(numbers)
            if vfm.queue:
                assert vfm.start >= now - self.over[vfm.id] - self.held(vfm) - behind - slack, "too far behind"
        for pair, (low, high) in self.range.items():
            difference = self.difference(pair)
            self.range[pair] = low, high = min(low, difference), max(high, difference)
            assert max(difference - low, high - difference) <= self.bound(*pair) + slack, "unfair"

    def behind(self) -> float:
        """What others may get while one waits for room."""
        return max(sum(each) for each in zip(self.largest, self.under, self.early, self.rest, strict=True))

    def bound(self, *pair: Vfm) -> float:
        parts = self.largest, self.under, self.early, self.over
        own = sum(part[vfm.id] for vfm in pair for part in parts) + sum(map(self.held, pair))
        return own + 2 * self.behind()

    def held(self, vfm: Vfm) -> float:
        """What others may get while prompts of one wait for others' sake."""
        return 0.0

    def difference(self, pair: tuple[Vfm, Vfm]) -> float:
        one, two = (vfm.service / vfm.weight for vfm in pair)
        return one - two

    def finish(self) -> None:
        """All that is there ends, and leaves nothing."""
        for _ in range(20_000):
            if not self.scheduler.queued:
                break
            assert self.step(), "it stands still"
        assert not self.state
        assert self.memory.blocks.free == self.scenario.blocks
        assert not self.memory.running


@settings(max_examples=150, deadline=None)
@given(scenario=SCENARIOS)
def test_sequences_are_served_within_the_bound(scenario: Scenario) -> None:
    world = World(scenario)
    for round_ in range(ROUNDS):
        world.arrive(round_)
        if world.scheduler.queued:
            assert world.step(), "it stands still"
    world.finish()


class Paced(World):
    """Prompts have less of a step while a vFM asks for one thing at a time."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        self.prefill_budget = PrefillBudget(CHUNK, lambda: self.measured, lag_s=scenario.lag)
        self.scheduler.has_room = self.has_room
        self.cut = self.waited = 0
        self.step_charge = 0.0  # the most that a vFM was charged for one

    def has_room(self, request: Request) -> bool:
        most = self.prefill_budget.most(request, int(request.work.tokens), begins=request not in self.memory.blocks_of)
        self.waited += not most
        if not most or not self.memory.has_room(request):
            return False
        if most < request.work.tokens:
            self.cut += 1
            request.work = Work(1, most, most * (self.state[request].computed + most))
        self.prefill_budget.place(request.vfm, int(request.work.tokens))
        return True

    def taken(self, batch: Sequence[Request]) -> None:
        super().taken(batch)
        self.prefill_budget.begin()
        for vfm in self.vfms:
            charged = sum(request.charge for request in batch if request.vfm is vfm)
            self.step_charge = max(self.step_charge, charged)

    def held(self, vfm: Vfm) -> float:
        return self.scenario.lag / vfm.weight + self.step_charge


@settings(max_examples=150, deadline=None)
@given(scenario=SCENARIOS, lag=st.sampled_from([0.0, 0.01, 0.1]))
def test_prompts_that_wait_for_others_sake_stay_within_the_bound(scenario: Scenario, lag: float) -> None:
    world = Paced(replace(scenario, lag=lag))
    for round_ in range(ROUNDS):
        world.arrive(round_)
        if world.scheduler.queued:
            assert world.step(), "it stands still"
    world.finish()


def test_shares_stay_beside_one_who_asks_for_one_thing_at_a_time() -> None:
    """Three to one, both always backlogged; the third has one request at a time."""
    world = Paced(Scenario(5, (3.0, 1.0, 1.0), 2, 8, 4000, 20, 1000, 1.0, False, lag=0.1))
    for round_ in range(600):
        world.arrive(2 * 20 * round_)  # the third rests
        if not any(request.vfm is world.vfms[2] for request in world.state):
            world.send(world.vfms[2])
        world.step()
    one, two, _ = world.vfms
    assert one.service / two.service == pytest.approx(3, rel=0.02)
    assert world.cut > 100
    assert world.waited > 100


class Beginnings(World):
    """Every prompt begins with one of a few texts of its vFM, which do not fit into memory together."""

    def send(self, vfm: Vfm) -> None:
        before = set(self.state)
        super().send(vfm)
        (request,) = set(self.state) - before
        state, text = self.state[request], self.random.randrange(4)
        beginning = [10_000 * (4 * vfm.id + text + 1) + place for place in range(8 * SIZE)]
        state.tokens, state.length = beginning + state.tokens, state.length + len(beginning)
        request.work = state.works[0]


def test_what_finds_more_in_memory_begins_before_its_turn_and_shares_stay() -> None:
    computed = {}
    for quantum in (0.0, 0.5):
        world = Beginnings(Scenario(4, (3.0, 1.0), 2, 8, 40, 8, 1000, 1.0, False, quantum))
        ended = 0
        for round_ in range(1500):
            world.arrive(round_)
            ended += sum(request not in world.state for request in world.step())
        one, two = world.vfms
        assert one.service / two.service == pytest.approx(3, rel=0.1)
        computed[quantum] = world.computed / ended
        assert (world.began_early > 0) == (quantum > 0)
    assert computed[0.5] < 0.7 * computed[0.0]


def test_with_room_for_all_the_bound_is_that_of_steps() -> None:
    """Three to one, always backlogged: within a step of each, whatever the sequences' lengths."""
    scenario = Scenario(1, (3.0, 1.0), 2, 8, 4000, 20, 1000, 1.0, False)
    world = World(scenario)
    for round_ in range(400):
        world.arrive(round_)
        world.step()
    one, two = world.vfms
    assert abs(one.service / 3 - two.service) <= sum(world.largest)
    assert one.service / two.service == pytest.approx(3, rel=0.02)


def test_who_is_preempted_pays_for_what_is_computed_again() -> None:
    """Shares stay as they are by weight, though memory is full and the heavy one's sequences do not fit."""
    scenario = Scenario(2, (3.0, 1.0), 2, 8, 24, 16, 1000, 1.0, False)
    world = World(scenario)
    for round_ in range(1500):
        world.arrive(round_)
        world.step()
    one, two = world.vfms
    assert world.recomputed > 100
    assert one.service / two.service == pytest.approx(3, rel=0.1)


def test_who_is_held_back_by_its_own_limit_banks_no_credit() -> None:
    scenario = Scenario(3, (1.0, 1.0), 2, 8, 400, 16, 1000, 1.0, True)
    world = World(scenario)
    for round_ in range(300):
        world.arrive(round_)
        world.step()
    free, limited = world.vfms
    assert limited.service < 0.7 * free.service
    limited.max_running = limited.max_kv_share = None
    before = free.service, limited.service
    for round_ in range(300):
        world.arrive(round_)
        world.step()
    assert (limited.service - before[1]) / (free.service - before[0]) == pytest.approx(1, rel=0.1)


class Greedy(Bfq):
    """Takes the largest tag first."""

    def rank(self, vfm: Vfm) -> float:
        """Upside down."""
        return -vfm.start


def test_the_checks_can_fail() -> None:
    caught = 0
    for seed in range(10):
        world = World(Scenario(seed, (1.0, 4.0, 0.5), 3, 4, 60, 12, 1000, 1.0, False), Greedy)
        try:
            for round_ in range(ROUNDS):
                world.arrive(round_)
                world.step()
        except AssertionError:
            caught += 1
    assert caught >= 8
