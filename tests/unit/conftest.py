"""Shared fixtures: a rig that drives a scheduler by hand, on a clock of its own."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import pytest
from hypothesis import settings

from fmplex_backend.errors import Cancelled, ExecutionFailed
from fmplex_backend.scheduling import POLICIES, CostModel, Scheduler
from fmplex_backend.types import NO_WORK, Answer, Failed, Reply, Request, Usage, Vfm, Work

if TYPE_CHECKING:
    from fmplex import Backbone

settings.register_profile("fmplex", derandomize=True, deadline=None, print_blob=True, database=None)
settings.load_profile("fmplex")

RELATIVE = 1e-9


class Rig:
    """A scheduler, its clock and a backbone that takes as long as it is told.

    As a context manager it checks at the end what holds for every policy and every history (`finish`).
    `Request.prepared` is the number of steps that a request still needs.
    """

    def __init__(
        self,
        policy: str | type[Scheduler] = "bfq",
        *,
        max_items: int = 32,
        max_tokens: int | None = None,
        cost: CostModel | None = None,
        efficiency: float = 1.0,
    ) -> None:
        self.cost = cost or CostModel(fixed=0.0, per_token=1e-3)  # 1 ms per token: easy to add up
        kind = POLICIES[policy] if isinstance(policy, str) else policy
        self.scheduler = kind(self.cost, max_items=max_items, max_tokens=max_tokens, efficiency=efficiency)
        self.now = 0.0
        self.measured = 0.0  # seconds of all passes
        self.prepared = 0.0  # seconds of preparing all requests
        self.preparation: dict[Request, float] = {}  # of the requests that were not scheduled yet
        self.vfms: list[Vfm] = []
        self.sent: list[Request] = []
        self.replies: Counter[int] = Counter()
        self.watches: list[Callable[[Sequence[Request]], None]] = []  # see what is about to be settled

    def vfm(self, weight: float = 1.0, slo: float | None = None) -> Vfm:
        """One more vFM."""
        vfm = Vfm(len(self.vfms), f"task{len(self.vfms)}", weight=weight, slo=slo)
        self.vfms.append(vfm)
        return vfm

    def send(
        self,
        vfm: Vfm,
        tokens: int = 10,
        *,
        items: int = 1,
        steps: int = 1,
        slo: float | None = None,
        preparation: float = 0.0,
        keys: Sequence[Hashable] = (),
    ) -> Request:
        """A request arrives now; its rows are of one length, and took so many seconds to prepare.

        With `keys`, one for each row, `tokens` are a row's, and equal keys are shared.
        """
        replies = self.replies

        def replied(reply: Reply, final: bool) -> None:
            assert final
            replies[id(request)] += 1

        request = Request(vfm, {}, (), self.now, replied, slo)
        request.work = Work(items, tokens, tokens * tokens // max(items, 1))
        if keys:
            row = Work.of_row(tokens)
            request.rows = dict.fromkeys(keys, row)
            request.work = sum((row for _ in keys), NO_WORK)
        request.prepared = steps
        request.preparation_s = self.preparation[request] = preparation
        self.prepared += preparation
        self.sent.append(request)
        self.scheduler.admit(request)
        return request

    def choose(self) -> list[Request]:
        """The next batch; never empty while something is queued."""
        waiting = sum(len(vfm.queue) for vfm in self.vfms)
        assert self.scheduler.queued == waiting
        assert self.scheduler.backlogged == sum(bool(vfm.queue) for vfm in self.vfms)
        queued = [request for vfm in self.vfms for request in vfm.queue]
        assert self.scheduler.urgent == sum(r.work.items for r in queued if r.deadline < math.inf)
        batch = self.scheduler.choose(self.now)
        assert bool(batch) == bool(waiting), "not work-conserving"
        return batch

    def run(
        self,
        batch: Sequence[Request],
        elapsed: float | None = None,
        *,
        portions: Sequence[Work] | None = None,
        failed: Collection[Request] = (),
    ) -> float:
        """Run what has not failed. Returns its seconds."""
        works = portions or self.shares(batch)
        ran = [(r, work) for r, work in zip(batch, works, strict=True) if r not in failed]
        if elapsed is None:
            elapsed = sum(self.cost.portion(work) for _, work in ran)
        self._settle([request for request in batch if request in failed], Failed(ExecutionFailed("broken")))
        if ran:
            self.now += elapsed
            self.measured += elapsed
            self.scheduler.measure(ran, elapsed)
            self._settle([request for request, _ in ran], Answer({}, Usage(0, 0, 0)))
        return elapsed

    def shares(self, batch: Sequence[Request]) -> list[Work]:
        """Each request's part of the batch's work: equal rows run once, for all who ask."""
        askers = Counter(key for request in batch for key in request.rows)
        return [
            sum((work.divided(askers[key]) for key, work in request.rows.items()), NO_WORK)
            if request.rows
            else request.work
            for request in batch
        ]

    def _settle(self, requests: Sequence[Request], reply: Reply) -> None:
        for watch in self.watches:
            watch(requests)
        self.scheduler.settle(requests)
        for request in requests:
            self.preparation.pop(request, None)
        for request in requests:
            request.prepared -= 1
            if request.prepared and not isinstance(reply, Failed):
                self.scheduler.requeue(request)
            else:
                request.resolve(reply)

    def step(self, elapsed: float | None = None) -> list[Request]:
        """Choose and run."""
        batch = self.choose()
        self.run(batch, elapsed)
        return batch

    def refuse(self, vfm: Vfm, preparation: float) -> None:
        """A request that took so many seconds until it was refused."""
        request = Request(vfm, {}, (), self.now, lambda reply, final: None, preparation_s=preparation)
        self.prepared += preparation
        self.scheduler.charge_refused(request)

    def discard(self, vfm: Vfm, requests: Iterable[Request]) -> None:
        """Cancelled while queued."""
        gone = list(requests)
        self.scheduler.discard(vfm, gone)
        for request in gone:
            request.resolve(Failed(Cancelled("gone")))

    def finish(self) -> None:
        """Run what is left, then: empty queues, service conserved, one reply to every request."""
        while self.scheduler.queued:
            self.step()
        assert self.choose() == []
        assert all(not vfm.queue and vfm.entry == 0 and vfm.depth == 0 for vfm in self.vfms)
        assert self.scheduler.backlogged == 0
        served = sum(vfm.service for vfm in self.vfms)
        assert served == pytest.approx(self.measured, rel=RELATIVE, abs=1e-12)
        prepared = sum(vfm.preparation_s for vfm in self.vfms)
        assert prepared == pytest.approx(self.prepared, rel=RELATIVE, abs=1e-12)
        assert all(abs(vfm.waiting_preparation_s) < 1e-9 for vfm in self.vfms)
        assert all(request.preparation_s == 0.0 for request in self.sent), "not charged"
        assert all(request.charge == request.service_s == 0.0 for request in self.sent), "not settled"
        assert [self.replies[id(request)] for request in self.sent] == [1] * len(self.sent)

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()


@pytest.fixture(scope="session")
def rigs() -> type[Rig]:
    """For tests that make many rigs: each a context manager."""
    return Rig


class MakeRig(Protocol):
    """What `make_rig` gives."""

    def __call__(
        self,
        policy: str | type[Scheduler] = "bfq",
        *,
        max_items: int = 32,
        max_tokens: int | None = None,
        cost: CostModel | None = None,
        efficiency: float = 1.0,
    ) -> Rig: ...


@pytest.fixture
def make_rig() -> Iterator[MakeRig]:
    """Rigs that are drained and checked when the test is over."""
    made: list[Rig] = []

    def make(
        policy: str | type[Scheduler] = "bfq",
        *,
        max_items: int = 32,
        max_tokens: int | None = None,
        cost: CostModel | None = None,
        efficiency: float = 1.0,
    ) -> Rig:
        made.append(Rig(policy, max_items=max_items, max_tokens=max_tokens, cost=cost, efficiency=efficiency))
        return made[-1]

    yield make
    for rig in made:
        rig.finish()


@pytest.fixture
def rng() -> random.Random:
    """The same numbers in every run."""
    return random.Random(20260609)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with a tiny backbone in it."""
    from task_fixtures import tiny_repository  # imports torch, which most tests do without

    return tiny_repository(tmp_path)


@pytest.fixture
def backbone(root: Path) -> Backbone:
    """The tiny backbone of `root`."""
    from task_fixtures import tiny_backbone

    return tiny_backbone(root)
