"""The tasks that a backbone serves, each by a vFM: what a round of the loader found is carried out on them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from fmplex_backend.errors import ExecutionFailed, TaskProblem
from fmplex_backend.repository.configs import CONFIG, backbone_stepped_into, read_config
from fmplex_backend.repository.tasks import Repository, TaskSpec
from fmplex_backend.serving.answer_cache import AnswerCache
from fmplex_backend.serving.candidates import Candidates
from fmplex_backend.serving.draining import Draining
from fmplex_backend.serving.engine import Engine
from fmplex_backend.serving.reconcile import (
    Attach,
    KeepFormer,
    Refuse,
    Retire,
    Served,
    SetTerms,
    Settling,
    changes_of_refused,
    changes_without_former,
)
from fmplex_backend.serving.tasklog import TaskLog
from fmplex_backend.serving.version_loading import VersionLoading
from fmplex_backend.types import LEAST_WEIGHT, Extensions, Vfm

log = logging.getLogger("fmplex")


class ServedTasks:
    """Makes, changes and retires vFMs. In a turn of the loader's; the engine does its part between two batches.

    Args:
        max_queue, max_queue_bytes, max_seconds: of vFMs whose task does not set them.
        grace, moved_grace: seconds, see `Loader`.
    """

    def __init__(
        self,
        repository: Repository,
        engine: Engine,
        loading: VersionLoading,
        answers: AnswerCache,
        task_log: TaskLog,
        *,
        max_queue: int,
        max_queue_bytes: int,
        max_seconds: float,
        grace: float,
        moved_grace: float,
    ) -> None:
        self.repository, self.engine, self.loading, self.answers = repository, engine, loading, answers
        self.task_log = task_log
        self.max_queue, self.max_queue_bytes, self.max_seconds = max_queue, max_queue_bytes, max_seconds
        self.grace, self.moved_grace = grace, moved_grace
        self.draining = Draining(self._retire_soon, engine.clock)
        self.candidates = Candidates(loading.load, self._attach_soon, self.draining, grace)
        self.served: dict[str, Served] = {}
        self.refused: dict[str, Refuse | KeepFormer] = {}  # by name: since the present round began
        self.leaving: dict[int, tuple[Vfm, float]] = {}  # by tag: served until this time of the engine's clock

    def apply(self, change: Settling) -> None:
        """Carry out a change that loads no version."""
        match change:
            case SetTerms():
                self._serve(change.spec, change.former.vfm)
            case KeepFormer():
                self._keep_former(change)
            case Refuse():
                self.refused[change.name] = change
                self.task_log.refused(change.name, str(change.error))
            case Retire():
                self._retire(change)

    def attach(self, change: Attach, loaded: Extensions | Exception) -> None:
        """Let a task serve with a version that was loaded, or refuse it where that raised."""
        spec, former = change.spec, change.former
        if isinstance(loaded, Exception):
            for consequence in changes_of_refused(spec, former, self.loading.refuse(spec, loaded)):
                self.apply(consequence)
            return
        self.loading.forget_refused(spec.name)
        vfm = former.vfm if former else Vfm(spec.vfm, spec.name)
        if former is None:
            vfm.extensions = loaded  # so that requests can be prepared before the engine has attached them
        self._attach_soon(vfm, loaded)
        self._serve(spec, vfm, spec.ahead_s if former is None else 0.0)

    def end_left(self, taken: Mapping[int, object]) -> dict[int, tuple[Vfm, float]]:
        """Take those out of `leaving` whose time is over, or whose tag is among those that others have taken."""
        now = self.engine.clock()
        ended = [tag for tag, (_, until) in self.leaving.items() if tag in taken or now >= until]
        return {tag: self.leaving.pop(tag) for tag in ended}

    def _serve(self, spec: TaskSpec, vfm: Vfm, ahead_s: float = 0.0) -> None:
        beside = self.candidates.settle(spec, vfm)
        for each in beside.parts(vfm):
            each.max_queue = spec.max_queue or self.max_queue
            each.max_queue_bytes = spec.max_queue_bytes or self.max_queue_bytes
            each.max_seconds = spec.max_seconds or self.max_seconds

        def set_terms() -> None:
            for each, part in beside.parts(vfm).items():
                _set_part(each, part, spec)
                each.slo = spec.slo
                if spec.cache and each.refused is None and each.extensions.repeats:
                    self.answers.open(each.extensions)
                else:
                    self.answers.close(each.extensions)
                self.engine.scheduler.begin_ahead(each, part * ahead_s)

        self.engine.post(set_terms)
        self.served[spec.name] = Served(spec, vfm)
        self.task_log.serves(spec)

    def _keep_former(self, change: KeepFormer) -> None:
        spec, former = change.spec, change.former
        version = former.spec.version
        if not version.intact():
            for consequence in changes_without_former(spec, former, change.error):
                self.apply(consequence)
            return
        self.refused[spec.name] = change
        self.task_log.refused(spec.name, f"{change.error} (version {version.number} goes on serving)")
        kept = replace(spec, version=version, outputs=former.spec.outputs)
        if kept != former.spec:
            self._serve(kept, former.vfm)

    def _retire(self, change: Retire) -> None:
        spec, vfm = change.served.spec, change.served.vfm
        grace = 0.0 if change.cause == "refused" else self.grace
        if change.cause == "moved" or (change.cause == "removed" and self._is_elsewhere(spec.name)):
            grace = self.moved_grace
        if (earlier := self.leaving.get(spec.vfm)) is not None:  # two left with this tag since the table was replaced
            self.draining.add(earlier[0], self.grace)
        self.leaving[spec.vfm] = (vfm, self.engine.clock() + grace)
        self.candidates.drop(vfm)
        self.served.pop(spec.name)
        if change.cause == "removed":
            self.task_log.removed(spec.name)

    def _is_elsewhere(self, name: str) -> bool:
        """Whether a task that is not in the entries any more is bound to another backbone."""
        try:
            return bool(backbone_stepped_into(read_config(self.repository.root / name / CONFIG)))
        except TaskProblem:
            return False

    # -- what the engine is told, and does on its own thread

    def _attach_soon(self, vfm: Vfm, extensions: Extensions) -> None:
        self.engine.post(partial(self._attach_on_engine, vfm, extensions))

    def _retire_soon(self, vfm: Vfm) -> None:
        self.engine.post(partial(self._retire_on_engine, vfm))

    def _attach_on_engine(self, vfm: Vfm, extensions: Extensions) -> None:
        self.answers.close(vfm.extensions)
        try:
            self.engine.attach(vfm, extensions)
        except Exception as error:  # no memory for one task's adapter is no reason to stop the others
            log.exception("attaching task %s", vfm.name)
            self.engine.refuse(vfm, ExecutionFailed(f"the extensions of {vfm.name!r} cannot be attached: {error}"))

    def _retire_on_engine(self, vfm: Vfm) -> None:
        self.answers.close(vfm.extensions)
        self.engine.retire(vfm)


def _set_part(vfm: Vfm, part: float, spec: TaskSpec) -> None:
    """Give a vFM its part of what the task may have, of which it has some at least."""
    vfm.set_weight(max(LEAST_WEIGHT, part * spec.weight))
    vfm.max_running = None if spec.max_running is None else max(1, round(part * spec.max_running))
    vfm.max_kv_share = None if spec.max_kv_share is None else part * spec.max_kv_share
