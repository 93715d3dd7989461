"""A backbone at work: the engine, the loader and the reply thread, with no server around them.

`submit` takes a request from anywhere and sees to it that it gets exactly one reply, also when a thread dies.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from fmplex_backend.config import BackboneConfig
from fmplex_backend.engine import Engine
from fmplex_backend.errors import (
    ExecutionFailed,
    FmplexError,
    InvalidRequest,
    QueueFull,
    ShuttingDown,
)
from fmplex_backend.interface import tag_of
from fmplex_backend.loader import Loader, Refusal
from fmplex_backend.repository import Repository
from fmplex_backend.scheduling import POLICIES, CostModel
from fmplex_backend.types import Answer, Failed, Finished, Reply, Request, Runtime, Usage
from fmplex_backend.vfm import Counts, Vfm

log = logging.getLogger("fmplex")

SWEEP_S = 1.0
FADE = 0.98  # a reply
SWEEP_MOST = 64  # requests a sweep asks about
PATIENCE_S = 10.0  # for another thread to end, when the process goes down


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it comes in: tensors, outputs asked for (tags among them), wishes, and where to answer."""

    inputs: Mapping[str, Any]
    outputs: Sequence[str]
    parameters: Mapping[str, Any]
    reply: Callable[[Reply], None]  # called exactly once
    is_cancelled: Callable[[], bool] | None = None


class Service:
    """One backbone with all its vFMs.

    Args:
        root: the model repository.
        name: the backbone's name in it.
        make_runtime: gets the cost model's `predict`.
        exit_process: what ends the process when a thread has died.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        config: BackboneConfig,
        max_items: int,
        make_runtime: Callable[[CostModel], Runtime],
        exit_process: Callable[[int], None] = os._exit,
    ) -> None:
        self.name = name
        self.cost = CostModel()
        self.runtime = make_runtime(self.cost)
        self.cost.seed(self.runtime.profile())
        scheduler = POLICIES[config.scheduler](self.cost, max_items=max_items, max_tokens=self.runtime.max_batch_tokens)
        self.engine = Engine(self.runtime, scheduler, self.cost, self._hand_over)
        self.loader = Loader(
            Repository(root, name),
            self.runtime,
            self.engine,
            max_queue=config.max_queue,
            slots=config.vfm_slots,
        )
        self.intake = Counts()  # of requests that no vFM could be found for
        self._replies: SimpleQueue[tuple[Request, Finished | Failed] | None] = SimpleQueue()
        self._closed: FmplexError | None = None
        self._exit = exit_process
        self._stopped = threading.Event()
        self._dying = threading.Lock()
        self._threads = {
            role: threading.Thread(target=partial(self._guard, role, main), name=f"fmplex-{role}", daemon=True)
            for role, main in {
                "engine": self.engine.run_forever,
                "reply": self._reply_forever,
                "watch": self.loader.watch_forever,
                "loader": self.loader.serve_questions,
                "sweep": self._sweep_forever,
            }.items()
        }

    def start(self) -> None:
        """Load the tasks that are there, then serve."""
        engine, *others = self._threads.values()
        engine.start()  # takes each adapter as it is read: held until all are, they would be in memory twice
        self.loader.refresh()
        for thread in others:
            thread.start()

    def stop(self, timeout: float = 20.0) -> None:
        """Answer what is queued, refuse what comes, end the threads."""
        self._closed = ShuttingDown(f"the backbone {self.name!r} is being unloaded")
        self._stopped.set()
        self.loader.stop()
        self.engine.post(self.engine.stop)
        self._threads["engine"].join(timeout)
        if self._threads["engine"].is_alive():
            log.error("the engine did not end within %g s; what it holds is answered with an error", timeout)
        self.engine.abandon(self._closed)
        self.engine.post(self.engine.stop)  # abandoned too, where the engine was late
        self._replies.put(None)
        self._threads["reply"].join(timeout)
        self._threads["loader"].join(timeout)
        self._answer_questions()

    # -- intake: any thread but the engine's

    def submit(self, call: Call) -> None:
        """Take a request in; every way out of here ends in exactly one reply."""
        try:
            tag = self._tag(call.outputs)
            found = self.loader.table.get(tag)
            if found is None and self._closed is None:
                self.loader.look_again(partial(self._submit_late, call, tag))
                if self._closed is not None:  # came in while the doors closed: nobody may be left to look
                    self._answer_questions()
            else:
                self._enter(call, found, tag, late=False)
        except FmplexError as error:
            self._refuse(call, self.intake, error)

    def _submit_late(self, call: Call, tag: int) -> None:
        """A tag that was not known has been looked for on disk."""
        try:
            if self._closed is not None:
                raise self._closed
            self._enter(call, self.loader.table.get(tag), tag, late=True)
        except FmplexError as error:
            self._refuse(call, self.intake, error)

    def _enter(self, call: Call, found: Vfm | Refusal | None, tag: int, *, late: bool) -> None:
        if found is None:
            raise InvalidRequest(f"VFM_{tag} is no task's tag on backbone {self.name!r}; {self._instead()}")
        if isinstance(found, Refusal):
            self._refuse(call, found.counts, found.error)
            return
        request = Request(
            vfm=found,
            inputs=call.inputs,
            outputs=tuple(output for output in call.outputs if tag_of(output) is None),
            arrival=self.engine.clock(),
            reply=lambda _, reply: call.reply(reply),
            handle=call.is_cancelled,
        )
        try:
            if found.depth >= found.max_queue:
                raise QueueFull(
                    f"{found.name!r} has {found.depth} requests waiting, its max_queue is {found.max_queue}; "
                    "send them more slowly or raise it"
                )
            request.slo = _slo(call.parameters)
            self.runtime.prepare(request)
        except FmplexError as error:
            self._refuse(call, found.intake, error)
        except Exception as error:
            failed = ExecutionFailed(f"preparing the request raised {type(error).__name__}: {error}")
            self._refuse(call, found.intake, failed)
        else:
            self._post(request, late=late)

    def _post(self, request: Request, *, late: bool) -> None:
        if late:  # `accepted` belongs to the intake thread, so the engine makes up for it
            self.engine.post(partial(_count_late, request.vfm))
        else:
            request.vfm.accepted += 1
        self.engine.post(request)
        if self._closed is not None:  # came in while the doors closed: nobody may be left to look
            request.resolve(Failed(self._closed))

    def _tag(self, outputs: Sequence[str]) -> int:
        if self._closed is not None:
            raise self._closed
        tags = {tag for tag in map(tag_of, outputs) if tag is not None}
        if len(tags) != 1:
            asked = "no task's tag" if not tags else f"{len(tags)} tasks' tags"
            raise InvalidRequest(f"{self.name!r} is a backbone and the request asks for {asked}: {self._instead()}")
        return tags.pop()

    def _instead(self) -> str:
        names = sorted(entry.name for entry in self.loader.table.values())
        return f"call a task instead: {', '.join(names[:20]) or '(none is in the repository)'}"

    def _refuse(self, call: Call, counts: Counts, error: FmplexError) -> None:
        counts.fail(error.reason)
        call.reply(Failed(error))

    # -- replies

    def _hand_over(self, request: Request, outcome: Finished | Failed) -> None:
        self._replies.put((request, outcome))

    def _reply_forever(self) -> None:
        while (item := self._replies.get()) is not None:
            request, outcome = item
            try:
                if isinstance(outcome, Failed):
                    request.resolve(outcome)
                else:
                    request.resolve(self._decode(request, outcome))
                    self._note_way_back(request)
            except BaseException:
                self._replies.put(item)  # answered with the rest when this thread has died
                raise

    def _note_way_back(self, request: Request) -> None:
        """A maximum that fades: deadlines end with the answer, not with the batch."""
        taken = self.engine.clock() - (request.arrival + request.queue_s + request.compute_s)
        self.engine.scheduler.way_back = max(taken, FADE * self.engine.scheduler.way_back)

    def _decode(self, request: Request, outcome: Finished) -> Reply:
        try:
            tensors = self.runtime.decode(request, outcome.value)
            usage = Usage(int(request.queue_s * 1e6), int(request.compute_s * 1e6), request.batch_items)
            return Answer(tensors, usage)
        except Exception as error:
            failed = ExecutionFailed(f"the decoder of {request.vfm.name!r} raised {type(error).__name__}: {error}")
            request.vfm.replied.fail(failed.reason)
            return Failed(failed)

    # -- requests whose client went away

    def _sweep_forever(self) -> None:
        """Asking costs a round trip to the server, so only those are asked that have waited for long."""
        while not self._stopped.wait(SWEEP_S):
            if not self.engine.scheduler.queued:
                continue
            found: SimpleQueue[list[Request]] = SimpleQueue()
            self.engine.post(partial(self._find_waiting, found))
            with suppress(Empty):  # a long pass, or the end
                gone = [request for request in found.get(timeout=PATIENCE_S) if _is_gone(request)]
                self.engine.post(partial(self.engine.cancel, gone))

    def _find_waiting(self, found: SimpleQueue[list[Request]]) -> None:
        found.put(self.engine.waiting(self.engine.clock() - SWEEP_S, SWEEP_MOST))

    # -- a thread that dies takes the process with it, after the last answer

    def _guard(self, role: str, main: Callable[[], None]) -> None:
        try:
            main()
        except BaseException as error:
            self._die(role, error)

    def _die(self, role: str, error: BaseException) -> None:
        with self._dying:
            log.critical("the %s thread died of %s: %s", role, type(error).__name__, error, exc_info=error)
            self._closed = ExecutionFailed(
                f"the {role} thread of backbone {self.name!r} died of {type(error).__name__}: {error}"
            )
            try:
                self._answer_all(role, self._closed)
            except BaseException:
                log.exception("not everything could be answered")
            finally:
                time.sleep(0.1)  # an answer that was just sent is still on its way to the server
                self._exit(70)

    def _answer_all(self, dead: str, error: FmplexError) -> None:
        self.loader.stop()
        if dead != "engine":
            self.engine.post(self.engine.stop)
            self._threads["engine"].join(PATIENCE_S)
        self.engine.abandon(error)
        if dead != "reply":
            self._replies.put(None)
            self._threads["reply"].join(PATIENCE_S)
        while not self._replies.empty():
            if item := self._replies.get_nowait():
                with suppress(Exception):  # the next one's may be sent
                    item[0].resolve(Failed(error))
        if dead != "loader":
            self._threads["loader"].join(PATIENCE_S)
        self._answer_questions()

    def _answer_questions(self) -> None:
        """Refuse those that wait for a look at the repository that nobody takes any more."""
        for answer in self.loader.unanswered():
            with suppress(Exception):
                answer()


def _count_late(vfm: Vfm) -> None:
    vfm.taken -= 1


def _is_gone(request: Request) -> bool:
    try:
        return request.handle is not None and bool(request.handle())
    except Exception:  # it was answered meanwhile, and the server has let go of it
        return False


def _slo(parameters: Mapping[str, Any]) -> float | None:
    """A request's own `slo_ms`, in seconds; raises InvalidRequest."""
    wish = parameters.get("slo_ms")
    if wish is None:
        return None
    try:
        value = 0.0 if isinstance(wish, bool) else float(wish)
    except (TypeError, ValueError, OverflowError):
        value = 0.0
    if not 0 < value < float("inf"):
        raise InvalidRequest(f"the request's parameter slo_ms is {wish!r}; it must be a number above 0")
    return value / 1000
