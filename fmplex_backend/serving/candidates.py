"""Versions that are tried beside those that tasks serve, each with a vFM of its own: kept in step with the entries.

A canary's vFM is one as any other and has its part of the task's weight. A shadow's is `spare`: see `serving/spare.py`.
A version that cannot be loaded is told of, and the task goes on without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count

from fmplex_backend.errors import TaskRefused
from fmplex_backend.repository.candidates import ROLES, CandidateSpec, Compare, Role, comparison
from fmplex_backend.repository.tasks import TaskSpec
from fmplex_backend.serving.draining import Draining
from fmplex_backend.serving.traffic_split import point
from fmplex_backend.types import Extensions, Vfm

log = logging.getLogger("fmplex")


class Compared:
    """What became of a shadow's copies; `serving/shadowing.py` counts."""

    def __init__(self) -> None:
        self.requests = 0  # whose answers were compared
        self.items = 0  # rows of these
        self.agreed = 0  # of the rows
        self.failures: dict[str, int] = {}  # copies that have no answer, by reason
        self.dropped = 0  # requests that were not copied, since there was no time for the copies before them


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a task's vFM had counted when a candidate came, so that both are compared over the same time."""

    requests: int
    failures: int
    queue_s: float
    compute_s: float

    @classmethod
    def of(cls, vfm: Vfm) -> Baseline:
        """As it is now."""
        return cls(vfm.engine.requests, sum(vfm.failures().values()), vfm.engine.queue_s, vfm.engine.compute_s)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A version that is tried; without a vFM it is refused for `error`."""

    spec: CandidateSpec
    beside: TaskSpec  # the task as it is served
    since: Baseline
    vfm: Vfm | None = None
    error: str = ""
    compare: Compare | None = None  # of a shadow
    compared: Compared = field(default_factory=Compared)
    turns: count[int] = field(default_factory=count)  # of requests without an id

    @property
    def problem(self) -> str:
        """Why it is not tried; "" where it is. The engine may find out later than the loader."""
        return str(self.vfm.refused) if self.vfm is not None and self.vfm.refused is not None else self.error

    def answers(self, request_id: str) -> bool:
        """Whether a canary answers a request: the same for the same id each time. One without an id takes its turn."""
        if self.vfm is None or self.vfm.refused is not None:
            return False
        salt = f"{self.beside.name}/{self.spec.number}"
        return point(salt, request_id or str(next(self.turns))) < self.spec.share


@dataclass(frozen=True, slots=True, eq=False)
class Beside:
    """What is tried beside a task."""

    canary: Candidate | None = None
    shadow: Candidate | None = None

    @property
    def every(self) -> tuple[Candidate, ...]:
        """Both, where there are both."""
        return tuple(each for each in (self.canary, self.shadow) if each is not None)

    def parts(self, vfm: Vfm) -> dict[Vfm, float]:
        """Of each vFM that answers requests of the task, whose own is given: its part of all that the task may have.

        A canary that cannot be attached has none, which the engine thread finds out.
        """
        canary = self.canary
        if canary is None or canary.vfm is None or canary.vfm.refused is not None:
            return {vfm: 1.0}
        return {vfm: 1 - canary.spec.share, canary.vfm: canary.spec.share}

    def chosen(self, vfm: Vfm, request_id: str) -> Vfm:
        """Which vFM answers a request of the task, whose own is given."""
        canary = self.canary
        return canary.vfm if canary is not None and canary.vfm is not None and canary.answers(request_id) else vfm


NOTHING = Beside()


class Candidates:
    """Of all tasks of a backbone. Under the loader's lock, but for `beside`, which any thread may read.

    Args:
        load: reads and checks a version for an entry; raises TaskRefused.
        attach: lets the engine do so.
        draining: gets those that nothing is sent to any more.
        grace: seconds that requests may still be on their way to a vFM which no new ones are sent to.
    """

    def __init__(
        self,
        load: Callable[[TaskSpec], Extensions],
        attach: Callable[[Vfm, Extensions], None],
        draining: Draining,
        grace: float,
    ) -> None:
        self._load, self._attach = load, attach
        self._draining, self.grace = draining, grace
        self.beside: Mapping[Vfm, Beside] = {}  # by the task's own vFM; replaced as a whole
        self._said: dict[tuple[str, Role], str] = {}  # by task and role, why what is tried now is refused

    def settle(self, spec: TaskSpec, vfm: Vfm) -> Beside:
        """Try what a task's entry says beside its vFM."""
        former = self.beside.get(vfm, NOTHING)
        known = {each.spec.role: each for each in former.every}
        now = Beside(**{each.role: self._tried(each, spec, vfm, known.get(each.role)) for each in spec.candidates})
        kept = {each.vfm for each in now.every}
        self._forget_said(spec.name, {each.role for each in spec.candidates})
        self._publish(vfm, now)
        self._end(each for each in former.every if each.vfm not in kept)
        return now

    def drop(self, vfm: Vfm) -> None:
        """Try nothing beside a vFM any more."""
        former = self.beside.get(vfm, NOTHING)
        self._forget_said(vfm.name)
        self._publish(vfm, NOTHING)
        self._end(former.every)

    def _tried(self, candidate: CandidateSpec, spec: TaskSpec, main: Vfm, former: Candidate | None) -> Candidate:
        if former is not None and _is_same(former, candidate, spec):
            return replace(former, spec=candidate, beside=spec)
        made = self._made(candidate, spec, main)
        key, said = (spec.name, candidate.role), f"version {candidate.number} as a {candidate.role}"
        if not made.error:
            self._said.pop(key, None)
            log.info("task %s: %s beside version %d", spec.name, said, spec.version.number)
        elif self._said.get(key) != made.error:
            self._said[key] = made.error
            log.error("task %s: %s is refused: %s", spec.name, said, made.error)
        return made

    def _forget_said(self, name: str, tried: Collection[Role] = ()) -> None:
        """Of a task in all roles but those that are tried: if one is refused again, that is news."""
        for role in set(ROLES).difference(tried):
            self._said.pop((name, role), None)

    def _made(self, candidate: CandidateSpec, spec: TaskSpec, main: Vfm) -> Candidate:
        since = Baseline.of(main)
        if candidate.version is None:
            return Candidate(candidate, spec, since, error=candidate.problem)
        try:
            compare = None
            if candidate.role == "shadow":
                compare = comparison(spec.version.path, candidate.version.path, candidate.tolerance)
            extensions = self._load(replace(spec, version=candidate.version))
        except TaskRefused as error:
            return Candidate(candidate, spec, since, error=str(error))
        except Exception as error:  # a version that is tried must not take down the one that is served
            log.exception("loading version %d of task %s", candidate.version.number, spec.name)
            return Candidate(candidate, spec, since, error=f"loading it raised {type(error).__name__}: {error}")
        vfm = Vfm(main.id, main.name, spare=candidate.role == "shadow")
        vfm.extensions = extensions  # so that requests can be prepared before the engine has attached them
        self._attach(vfm, extensions)
        return Candidate(candidate, spec, since, vfm, compare=compare)

    def _end(self, candidates: Iterable[Candidate]) -> None:
        for each in candidates:
            if each.vfm is not None:
                self._draining.add(each.vfm, self.grace)

    def _publish(self, vfm: Vfm, now: Beside) -> None:
        others = {other: each for other, each in self.beside.items() if other is not vfm}
        self.beside = others | ({vfm: now} if now.every else {})


def _is_same(former: Candidate, candidate: CandidateSpec, spec: TaskSpec) -> bool:
    """Whether a candidate goes on: the same files, beside the same version with the same interface, as before."""
    was = former.beside
    as_before = (candidate.version, candidate.problem, candidate.tolerance) == (
        former.spec.version,
        former.spec.problem,
        former.spec.tolerance,
    )
    return as_before and (spec.version, spec.inputs, spec.outputs) == (was.version, was.inputs, was.outputs)
