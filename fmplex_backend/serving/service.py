"""A whole backbone, with no server around it: what its parts are, how they start and how they end.

    submit -> Intake -> Preparation -> Engine -> Replies -> Call.send
           -> Reporter         ^         ^ ^                -> Shadowing -> Engine
                               Cancellation
    repository -> Watch -> Loader -> Engine

Every call gets exactly one last reply, also when a thread dies: the process then ends, after the last reply.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import filterfalse
from pathlib import Path

from fmplex_backend.confinement import Confinement
from fmplex_backend.errors import ExecutionFailed, FmplexError, ShuttingDown
from fmplex_backend.hardware import hardware
from fmplex_backend.profiles import find_profile
from fmplex_backend.repository.parameters import BackboneConfig
from fmplex_backend.repository.tasks import Repository
from fmplex_backend.scheduling import POLICIES, CostModel, Locality
from fmplex_backend.serving.answer_cache import AnswerCache
from fmplex_backend.serving.cancellation import Cancellation
from fmplex_backend.serving.coalescing import Coalescing
from fmplex_backend.serving.engine import Engine
from fmplex_backend.serving.intake import Call, Intake
from fmplex_backend.serving.loader import Loader
from fmplex_backend.serving.memory import give_back
from fmplex_backend.serving.preparation import WORKERS, Preparation
from fmplex_backend.serving.replies import Replies
from fmplex_backend.serving.reporter import Reporter, asks_for_status
from fmplex_backend.serving.shadowing import Shadowing
from fmplex_backend.serving.tags import Models, UnknownModels
from fmplex_backend.serving.watch import Watch
from fmplex_backend.types import Outcome, PassShape, Request, Runtime

log = logging.getLogger("fmplex")

JOIN_TIMEOUT_S = 10.0  # for another thread to end after one has died
EXIT_STATUS = 70  # EX_SOFTWARE of sysexits.h


class Service:
    """One backbone with all its vFMs.

    Args:
        root: the model repository.
        name: the backbone's name in it.
        max_items: Bmax, the most rows of a batch.
        make_runtime: gets the cost model, whose `predict` may decide how batches are cut into passes.
        exit_process: what ends the process when a thread has died.
        models: the server's.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        config: BackboneConfig,
        max_items: int,
        make_runtime: Callable[[CostModel], Runtime],
        exit_process: Callable[[int], None] = os._exit,
        models: Models | None = None,
    ) -> None:
        self.name = name
        self.cost = CostModel()
        self.runtime = make_runtime(self.cost)
        give_back()  # of a model, what was converted or put into another order while it was loaded
        log.info("backbone %s: %s, computed in %s", name, config.model, self.runtime.dtype)
        self.cost.seed([*_measured(config, self.runtime.dtype), *self.runtime.profile()])
        scheduler = POLICIES[config.scheduler](
            self.cost,
            max_items=max_items,
            max_tokens=self.runtime.max_batch_tokens,
            efficiency=config.batch_efficiency,
            has_room=self.runtime.has_room,
            locality=Locality(self.runtime.locality_s, self.runtime.kept) if self.runtime.locality_s else None,
        )
        self.answers = AnswerCache(config.cache_bytes)
        self.replies = Replies(self.runtime, self.answers)
        self.engine = Engine(self.runtime, scheduler, self.cost, self._hand_over)
        self.shadowing = Shadowing(self.runtime, self.engine)
        self.preparation = Preparation(self.runtime, self.engine)
        self.loader = Loader(
            Repository(root, name),
            self.runtime,
            self.engine,
            max_queue=config.max_queue,
            max_queue_bytes=config.max_queue_bytes,
            max_seconds=config.max_seconds or math.inf,
            slots=config.vfm_slots,
            confinement=Confinement.of(os.environ, config.max_version_bytes),
            models=models,
            answers=self.answers,
        )
        self.watch = Watch(self.loader, (models or UnknownModels()).close_old)
        self.intake = Intake(
            name, self.preparation, self.loader, self.watch, self.replies, self.engine.clock, self.shadowing
        )
        self.reporter = Reporter(name, config, self.engine, self.loader, self.watch, self.intake)
        self.cancellation = Cancellation(self.preparation, self.engine, self.replies)
        self.coalescing = Coalescing(self.engine, self.replies)
        self._exit = exit_process
        self._dying = threading.Lock()
        self._threads: dict[str, threading.Thread] = {}
        self._ended: dict[str, threading.Event] = {}  # by role: its thread does nothing any more
        self._workers = [f"preparation-{number}" for number in range(WORKERS)]
        self._readers = ["look-up", "claims", "asks"]
        self._repliers = [f"reply-{lane.number}" for lane in self.replies.lanes]

    def submit(self, *calls: Call) -> None:
        """Take calls in; whatever becomes of one, it gets exactly one last reply. Any thread but the engine's."""
        for call in filter(asks_for_status, calls):
            self.reporter.submit(call)
        self.intake.submit(filterfalse(asks_for_status, calls))

    def _hand_over(self, request: Request, outcome: Outcome) -> None:
        (self.shadowing if request.vfm.spare else self.replies).put(request, outcome)

    def coalesce_calls(self) -> None:
        """Pause while a batch runs, so that the server gives further calls over together."""
        self.coalescing.pause()

    def start(self) -> None:
        """Load the tasks that are there, then serve."""
        self._start("engine", self.engine.run_forever)  # attaches each adapter as it is read, not all at the end
        self.intake.ownership.look()  # before the loader, which then finds every entry parsed
        self.loader.refresh()
        for worker in self._workers:
            self._start(worker, self.preparation.run_forever)
        for role, lane in zip(self._repliers, self.replies.lanes, strict=True):
            self._start(role, partial(lane.run_forever, self.engine))
        self._start("watch", self.watch.follow_forever)
        self._start("look-up", self.watch.look_up_forever)
        self._start("claims", self.watch.look_up_claims_forever)
        self._start("asks", self.watch.ask_forever)
        self._start("tags", self.watch.settle_forever)
        self._start("cancellation", self.cancellation.run_forever)
        self.shadowing.start()

    def stop(self, timeout: float = 20.0) -> None:
        """Answer what is queued, refuse what comes, end the threads."""
        closed = ShuttingDown(f"the backbone {self.name!r} is being unloaded")
        self.intake.close(closed)
        self.cancellation.stop()
        self.watch.stop()
        self._end_preparation(closed, timeout)
        self.engine.post(self.engine.stop)
        self._join("engine", timeout)
        if not self._ended["engine"].is_set():
            log.error("the engine did not end within %g s; what it holds is answered with an error", timeout)
        self.engine.abandon(closed)
        self.engine.post(self.engine.stop)  # for an engine that is late: `abandon` has emptied its inbox
        self.replies.stop()
        self._join_all(self._repliers, timeout)
        self.replies.fail_all(closed)
        self.replies.stop()  # for a reply thread that is late: `fail_all` has emptied its inbox
        self.shadowing.stop()
        self._join_all(self._readers, timeout)
        self._join("tags", timeout)  # the server must not be asked once it is told that this is the end
        self.intake.fail_look_ups()

    def _end_preparation(self, error: FmplexError, timeout: float) -> None:
        """Let the workers prepare what waits; what they have not within the time is answered with the error."""
        self.preparation.stop()
        self._join_all(self._workers, timeout)
        self.preparation.fail_all(error)

    # -- threads

    def _start(self, role: str, main: Callable[[], None]) -> None:
        ended = self._ended[role] = threading.Event()

        def guarded() -> None:
            try:
                main()
                ended.set()
            except BaseException as error:
                ended.set()  # before this thread waits for another that is dying, and waits for this one
                self._die(role, error)

        self._threads[role] = threading.Thread(target=guarded, name=f"fmplex-{role}", daemon=True)
        self._threads[role].start()

    def _join(self, role: str, timeout: float) -> None:
        if ended := self._ended.get(role):
            ended.wait(timeout)

    def _join_all(self, roles: Sequence[str], timeout: float) -> None:
        """The same for several threads, within the time together."""
        until = time.monotonic() + timeout
        for role in roles:
            self._join(role, max(0.0, until - time.monotonic()))

    # -- when a thread dies

    def _die(self, role: str, error: BaseException) -> None:
        """Answer everything with an error, then end the process. Runs on the thread that dies."""
        with self._dying:
            log.critical("the %s thread died of %s: %s", role, type(error).__name__, error, exc_info=error)
            died = ExecutionFailed(
                f"the {role} thread of backbone {self.name!r} died of {type(error).__name__}: {error}"
            )
            self.intake.close(died)
            try:
                self._fail_all(died)
            except BaseException:
                log.exception("not everything could be answered")
            finally:
                time.sleep(0.1)  # replies that were just sent are still on their way to the server
                self._exit(EXIT_STATUS)

    def _fail_all(self, error: FmplexError) -> None:
        self.watch.stop()
        self.preparation.stop()
        self.preparation.fail_all(error)
        self.engine.post(self.engine.stop)
        self._join("engine", JOIN_TIMEOUT_S)
        self.engine.abandon(error)
        self.replies.stop()
        self._join_all(self._repliers, JOIN_TIMEOUT_S)
        self.replies.fail_all(error)
        self._join_all(self._readers, JOIN_TIMEOUT_S)
        self.intake.fail_look_ups()


def _measured(config: BackboneConfig, dtype: str) -> list[tuple[PassShape, float]]:
    """The passes of a profile that was measured on this machine; one that cannot be read is no reason not to serve."""
    try:
        profile = find_profile(config.model, dtype, hardware(config.threads))
    except (FmplexError, OSError) as error:
        log.warning("the cost model starts without its profile: %s", error)
        return []
    if profile is None:
        return []
    log.info("the cost model starts from %d batches that were measured on %s", len(profile.points), profile.day)
    return list(profile.passes())
