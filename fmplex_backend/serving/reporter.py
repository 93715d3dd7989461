"""Answers requests for a backbone's status, past the engine: also while that is busy, or hangs."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np

from fmplex_backend.errors import ExecutionFailed, FmplexError, InvalidRequest, TagContested
from fmplex_backend.hardware import cores, hardware, memory_of_machine, memory_of_process
from fmplex_backend.interface import PREFETCH, STATUS, TASK
from fmplex_backend.printable import printable
from fmplex_backend.repository.parameters import BackboneConfig
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.serving.accounts import Closed, account_of
from fmplex_backend.serving.batch import AtWork
from fmplex_backend.serving.candidates import NOTHING, Baseline, Beside, Candidate
from fmplex_backend.serving.engine import Engine
from fmplex_backend.serving.intake import Call, Intake
from fmplex_backend.serving.loader import Loader
from fmplex_backend.serving.standing import Standing
from fmplex_backend.serving.table import Group, Refusal, vfm_of
from fmplex_backend.serving.watch import Watch
from fmplex_backend.status import BackboneStatus, CandidateStatus, ClosedAccount, Cost, TaskStatus
from fmplex_backend.types import NO_USAGE, RESIDENT, Answer, Failed, Vfm

log = logging.getLogger("fmplex")

READINGS = 3  # at most, until no batch has ended while the numbers of all tasks were read


def asks_for_status(call: Call) -> bool:
    """Whether a call is for a Reporter rather than for a task."""
    return TASK.name in call.inputs


class Reporter:
    """Reads plain numbers that other threads write; takes no lock."""

    def __init__(
        self, backbone: str, config: BackboneConfig, engine: Engine, loader: Loader, watch: Watch, intake: Intake
    ) -> None:
        self.backbone, self.config = backbone, config
        self.engine, self.loader, self.watch, self.intake = engine, loader, watch, intake
        self._hardware = hardware(config.threads)
        self._since, self._started_at = engine.clock(), time.time()
        self._version = _own_version()

    def submit(self, call: Call) -> None:
        """Answer with the status: at once of all tasks, or of one that is named once the repository has been read."""
        try:
            name = _name(call.inputs)
        except FmplexError as error:
            call.send(Failed(error), True)
            return
        if name:
            prefetch = call.parameters.get(PREFETCH) == "true"
            self.watch.look_up(partial(self._answer, call, name, prefetch=prefetch), name)
            self.intake.fail_look_ups_if_closed()
        else:
            self._answer(call, "")

    def _answer(self, call: Call, name: str, *, prefetch: bool = False) -> None:
        try:
            ahead = self._read_ahead(name) if prefetch else {}
            status = self.status(name).model_copy(update=ahead)
            document = status.model_dump_json().encode()
        except Exception as error:  # on the look-up thread it would end the process
            log.exception("telling the status")
            call.send(Failed(ExecutionFailed(f"the status cannot be told: {error}")), True)
            return
        call.send(Answer({STATUS.name: np.array([[document]], dtype=np.object_)}, NO_USAGE), True)

    def _read_ahead(self, name: str) -> dict[str, Any]:
        """Fields of the status that say whether a task can be bound here."""
        prefetched = self.loader.prefetch(name)
        tag, seconds = self.loader.reserve(name) if prefetched == "" else (None, 0.0)
        return {"prefetched": prefetched, "reserved": tag, "reserved_s": seconds}

    def status(self, name: str = "") -> BackboneStatus:
        """The backbone as it is now, with all its tasks or the one that is named."""
        about: dict[str, Any] = {
            "name": self.backbone,
            "family": self.config.family,
            "model": self.config.model,
            "dtype": self.engine.runtime.dtype,
            "scheduler": self.config.scheduler,
            "slots": self.config.vfm_slots,
            "max_batch": self.engine.scheduler.max_items,
            "hardware": self._hardware,
            "cost": _cost(self.engine.cost),
            "threads": self.config.threads,
            "cores": cores(),
            "memory": memory_of_process(),
            "machine_memory": memory_of_machine(),
            "fmplex": self._version,
            "pid": os.getpid(),
            "started_at": self._started_at,
        }
        for _ in range(READINGS):
            work, now = self._at_work()
            numbers, tasks, closed = self._read(name, work, now)
            if self.engine.at_work is work:
                break
        told = tuple(map(_closed, closed))
        return BackboneStatus(**about, **numbers, tasks=tuple(map(_task_status, tasks)), closed=told)

    def _read(self, name: str, work: AtWork, now: float) -> tuple[dict[str, Any], list[dict[str, Any]], list[Closed]]:
        """Fields of the status that change, of its tasks, and closed accounts: quickly, since the engine goes on."""
        counts, running = self.engine.counts, self.engine.running
        standings = self.loader.standings
        by_vfm = Counter(request.vfm for request in running)
        tasks = [self._task(each, by_vfm) for each in standings if name in ("", printable(each.name))]
        closed = [] if name else self._closed()
        last, since = counts.last_batch_at, work.running_since
        numbers = {
            "up_s": now - self._since,
            "batches": counts.batches,
            "items": counts.items,
            "busy_s": work.settled_s,
            "last_batch_s": None if last is None else max(0.0, now - last),
            "queued": self._queued(standings),
            "running": len(running),
            "running_s": 0.0 if since is None else max(0.0, now - since),
            "failures": dict(self.intake.counts.failures),
            "kept_answers": self.intake.answers.answers,
            "kept_bytes": self.intake.answers.bytes,
        }
        return numbers, tasks, closed

    def _at_work(self) -> tuple[AtWork, float]:
        """With the time by the engine's clock at which it is so: no batch ends in between and counts twice."""
        while True:
            work, now = self.engine.at_work, self.engine.clock()
            if self.engine.at_work is work:
                return work, now

    def _task(self, standing: Standing, running: Counter[Vfm]) -> dict[str, Any]:
        """Fields of its status, its candidates' as they are."""
        if standing.group is not None:
            return self._group(standing, standing.group)
        vfm = standing.vfm
        # Its extensions could not be attached: the engine found out after the loader's round.
        refused = None if vfm is None else vfm.refused
        beside = NOTHING if vfm is None else self.loader.candidates.beside.get(vfm, NOTHING)
        contested = self._contested(standing)
        error = refused or contested
        return {
            "name": printable(standing.name),
            "backbone": self.backbone,
            "tag": standing.tag,
            "state": "refused" if refused else standing.state,
            "version": standing.version,
            "error": printable(str(error) if error else standing.error),
            "contested": contested is not None,
            "attached": None if vfm is None else vfm in self.engine.vfms,
            "candidates": () if vfm is None else tuple(_candidate(each, vfm, running) for each in beside.every),
            **(self._failures_of_refused(standing) if vfm is None else self._account(vfm, beside, running)),
        }

    def _contested(self, standing: Standing) -> TagContested | None:
        """Why none of its requests is answered, where others' may come with its tag."""
        if standing.vfm is None or standing.tag is None or standing.state == "leaving":
            return None
        found = self.loader.table.get(standing.tag)
        return found.error if isinstance(found, Refusal) and isinstance(found.error, TagContested) else None

    def _closed(self) -> list[Closed]:
        """With those that are about to be, on whose accounts nothing new comes."""
        return [*(account_of(vfm) for vfm in self.loader.draining.vfms), *self.engine.closed]

    def _account(self, vfm: Vfm, beside: Beside, running: Counter[Vfm]) -> dict[str, Any]:
        ahead_s = sum(map(self.engine.scheduler.ahead_s, beside.parts(vfm)))
        told = {reading.metric: reading.value for reading in self.engine.runtime.readings(vfm)}
        in_memory = {"adapter_in_memory": bool(told[RESIDENT])} if RESIDENT in told else {}
        return _counts(vfm, beside) | {"ahead_s": ahead_s, "running": running[vfm]} | in_memory

    def _queued(self, standings: Sequence[Standing]) -> int:
        """Requests that wait: of tasks that are told of, and of those that have left and are to run to the end.

        A shadow's copies may wait for ever, and nobody waits for them.
        """
        told = {each.vfm for each in standings if each.vfm is not None}
        return sum(vfm.depth for vfm in told.union(tuple(self.engine.vfms)) if not vfm.spare)

    def _group(self, standing: Standing, group: Group) -> dict[str, Any]:
        """A group goes on with the tasks that can be asked; `error` says why others cannot."""
        spec, problems = group.spec, []
        for member in spec.members:
            try:
                vfm_of(spec, member, self.loader.table.get(member.tag))
            except FmplexError as error:
                problems.append(str(error))
        return {
            "name": printable(group.name),
            "backbone": self.backbone,
            "tag": standing.tag,
            "state": standing.state,
            "members": tuple(printable(member.name) for member in spec.members),
            "slo_ms": None if spec.slo is None else spec.slo * 1000,
            "requests": group.counts.requests,
            "failures": dict(group.counts.failures),
            "error": printable("; ".join(problems)),
        }

    def _failures_of_refused(self, standing: Standing) -> dict[str, Any]:
        refusal = None if standing.tag is None else self.loader.table.get(standing.tag)
        if isinstance(refusal, Refusal) and refusal.name == standing.name:
            return {"failures": dict(refusal.counts.failures)}
        return {}


def _task_status(fields: dict[str, Any]) -> TaskStatus:
    candidates = tuple(CandidateStatus(**each) for each in fields.get("candidates", ()))
    return TaskStatus(**fields | {"candidates": candidates})


def _cost(cost: CostModel) -> Cost:
    return Cost(
        fixed=cost.fixed,
        per_token=cost.per_token,
        per_area=cost.per_area,
        per_group=cost.per_group,
        once=cost.once(0),
    )


def _counts(vfm: Vfm, beside: Beside) -> dict[str, Any]:
    # A canary's vFM has a part of these.
    whole = vfm if beside.canary is None else beside.canary.beside
    return {
        "weight": whole.weight,
        "slo_ms": None if vfm.slo is None else vfm.slo * 1000,
        "max_queue": vfm.max_queue,
        "max_queue_bytes": vfm.max_queue_bytes,
        "max_seconds": None if math.isinf(vfm.max_seconds) else vfm.max_seconds,
        "max_running": whole.max_running,
        "max_kv_share": whole.max_kv_share,
        "queued": vfm.depth,
        "queue_bytes": vfm.queue_bytes,
        "requests": vfm.engine.requests,
        "items": vfm.engine.items,
        "tokens": vfm.engine.tokens,
        "failures": vfm.failures(),
        "misses": vfm.engine.misses,
        "cache_hits": vfm.intake.cache_hits,
        "cache_misses": vfm.intake.cache_misses,
        "queue_s": vfm.engine.queue_s,
        "service_s": vfm.service,
        "preparation_s": vfm.preparation_s,
        "account": vfm.account,
    }


def _candidate(candidate: Candidate, main: Vfm, running: Counter[Vfm]) -> dict[str, Any]:
    spec, vfm, compared = candidate.spec, candidate.vfm, candidate.compared
    now, then = Baseline.of(main), candidate.since
    is_shadow = spec.role == "shadow"
    own: dict[str, Any] = {}
    if vfm is not None:
        counts = vfm.engine
        own = {
            "queued": vfm.depth,
            "running": running[vfm],
            "requests": compared.requests if is_shadow else counts.requests,
            "items": compared.items if is_shadow else counts.items,
            "tokens": 0.0 if is_shadow else counts.tokens,
            "failures": dict(compared.failures) if is_shadow else vfm.failures(),
            "cache_hits": vfm.intake.cache_hits,
            "cache_misses": vfm.intake.cache_misses,
            "misses": counts.misses,
            "queue_s": counts.queue_s,
            "compute_s": counts.compute_s,
            "service_s": vfm.service,
            "preparation_s": vfm.preparation_s,
            "account": vfm.account,
        }
    return {
        "role": spec.role,
        "version": spec.number,
        "error": printable(candidate.problem),
        "share": None if is_shadow else spec.share,
        "compared": compared.items,
        "agreed": compared.agreed,
        "dropped": compared.dropped,
        "served_requests": now.requests - then.requests,
        "served_failures": now.failures - then.failures,
        "served_queue_s": now.queue_s - then.queue_s,
        "served_compute_s": now.compute_s - then.compute_s,
        **own,
    }


def _closed(closed: Closed) -> ClosedAccount:
    return ClosedAccount(**closed._asdict() | {"task": printable(closed.task)})


def _own_version() -> str:
    try:
        return metadata.version("fmplex")
    except metadata.PackageNotFoundError:  # on PYTHONPATH without having been installed
        return "unknown"


def _name(inputs: Mapping[str, Any]) -> str:
    """The task's name in the input TASK; "" stands for all."""
    cells = inputs[TASK.name].ravel().tolist()
    try:
        (name,) = [cell.decode() if isinstance(cell, bytes) else str(cell) for cell in cells]
    except ValueError as error:  # of several, of none, or of bytes that are not UTF-8
        raise InvalidRequest(f"{TASK.name} must be one task's name, or an empty text for all: {error}") from None
    return name
