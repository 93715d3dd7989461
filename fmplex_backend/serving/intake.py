"""Calls become requests: their tag is looked up, their wishes read, and `Preparation` gets them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from queue import SimpleQueue
from typing import Any

from fmplex_backend.errors import ExecutionFailed, FmplexError, GroupChanged, InvalidRequest
from fmplex_backend.interface import member_of, tag_of
from fmplex_backend.repository.groups import GroupSpec
from fmplex_backend.serving.gathering import Gathering
from fmplex_backend.serving.loader import Loader
from fmplex_backend.serving.memory import bytes_of
from fmplex_backend.serving.ownership import Ownership
from fmplex_backend.serving.preparation import Preparation
from fmplex_backend.serving.queues import drained
from fmplex_backend.serving.replies import CachedAnswer, Replies
from fmplex_backend.serving.shadowing import Shadowing
from fmplex_backend.serving.table import Answering, Group, Refusal, vfm_of
from fmplex_backend.serving.watch import Watch
from fmplex_backend.types import REPLY_THREADS, Failed, Request, Send, SharedCounts, Vfm


@dataclass(frozen=True, slots=True)
class Call:
    """A request as the server hands it over."""

    inputs: Mapping[str, Any]
    outputs: Sequence[str]  # requested, the tag among them
    parameters: Mapping[str, Any]  # the client's wishes: `slo_ms`
    send: Send  # gets exactly one last reply
    is_cancelled: Callable[[], bool] | None = None
    request_id: str = ""  # the client's


# By (task, tag) pairs what is doubtful of them, for calls that came together: asked once, since they came before.
Doubts = dict[tuple[tuple[str, int], ...], set[str]]


class Intake:
    """Takes calls in, on any thread but the engine's.

    Args:
        shadowing: gets copies of requests for the versions that are tried as shadows.

    `counts` are of calls for which there is no vFM.
    """

    def __init__(
        self,
        backbone: str,
        preparation: Preparation,
        loader: Loader,
        watch: Watch,
        replies: Replies,
        clock: Callable[[], float],
        shadowing: Shadowing,
    ) -> None:
        self.backbone, self.clock = backbone, clock
        self.preparation, self.loader, self.watch, self.shadowing = preparation, loader, watch, shadowing
        self.replies, self.answers = replies, replies.answers
        self.ownership = Ownership(loader, clock)
        self.counts = SharedCounts()
        self._closed: FmplexError | None = None
        self._turns = count()
        self._deferred: SimpleQueue[Call] = SimpleQueue()  # for whose tags the server has to be asked

    def close(self, error: FmplexError) -> None:
        """Refuse calls with this error from now on."""
        self._closed = error

    def submit(self, calls: Iterable[Call]) -> None:
        """Take calls in that have come by now; whatever becomes of one, it gets exactly one last reply."""
        known: Doubts = {}
        for call in calls:
            self._submit(call, known)

    def _submit(self, call: Call, known: Doubts, *, may_wait: bool = False) -> None:
        """On the thread that gets all calls nothing waits for the server."""
        try:
            tag = self._tag(call.outputs)
            found = self.loader.table.get(tag)
            if isinstance(found, Refusal):
                self._enter(call, found)
            elif found is None or (owners := self._owners(call, found, tag)) is None:
                self._look_up(call, tag)
            elif not may_wait and self.ownership.asks_server(owners):
                self._deferred.put(call)
                self.watch.ask(self._submit_deferred)
                self.fail_look_ups_if_closed()
            elif doubts := self._doubts(owners, known):
                if isinstance(found, Vfm):
                    self._look_up_claims(call, tag, doubts)
                else:
                    self._look_up(call, tag)
            elif coming := self._coming(owners):
                self._look_up(call, tag, *coming)
            else:
                self._enter(call, found)
        except Exception as error:
            _refuse(call, self.counts, _as_refusal(error))

    def _submit_deferred(self) -> None:
        """Submit those that have come by now: the server is asked once for all of them."""
        calls = list(drained(self._deferred))  # before the server is asked
        known: Doubts = {}
        for call in calls:
            if self._closed is not None:
                _refuse(call, self.counts, self._closed)
            else:
                self._submit(call, known, may_wait=True)

    def _submit_again(self, call: Call, tag: int) -> None:
        """Once the repository has been read for a tag that was unknown, or may have become another task's."""
        try:
            if self._closed is not None:
                raise self._closed
            found = self.loader.table.get(tag)
            if found is None:
                self.loader.task_log.unknown_tag(tag, self.clock())
                raise InvalidRequest(f"VFM_{tag} is no task's tag on backbone {self.backbone!r}; {self._instead()}")
            self._enter(call, found)
        except Exception as error:
            _refuse(call, self.counts, _as_refusal(error))

    def fail_look_ups(self) -> None:
        """Refuse calls that wait for a look-up when no thread serves them any more; call `close` first."""
        for submit_again in self.watch.unanswered():
            with suppress(Exception):  # the server may still take the others
                submit_again()

    def fail_look_ups_if_closed(self) -> None:
        """The same for one that was asked for while this was being closed: the look-up thread may have ended."""
        if self._closed is not None:
            self.fail_look_ups()

    def _look_up(self, call: Call, tag: int, *names: str) -> None:
        """Submit a call again once the repository has been read, or these directories."""
        self.watch.look_up(partial(self._submit_again, call, tag), *names)
        self.fail_look_ups_if_closed()

    def _look_up_claims(self, call: Call, tag: int, doubts: set[str]) -> None:
        """The same for a served task's, once it has been read which tags these directories claim."""
        self.watch.look_up_claims(partial(self._submit_claimed, call, tag), doubts)
        self.fail_look_ups_if_closed()

    def _submit_claimed(self, call: Call, tag: int) -> None:
        """Once it has been read who claims a served task's tag: it may have to wait for what has come or left."""
        try:
            found = self.loader.table.get(tag)
            is_certain = isinstance(found, Vfm) and not self.ownership.doubts([(found.name, tag)])
            if self._closed is not None or is_certain or isinstance(found, Refusal):
                self._submit_again(call, tag)
            else:
                self._look_up(call, tag)
        except Exception as error:
            _refuse(call, self.counts, _as_refusal(error))

    @staticmethod
    def _owners(call: Call, found: Vfm | Group, tag: int) -> tuple[tuple[str, int], ...] | None:
        """Whose the tag is by the table, and those of a group's members; None where the group has another entry."""
        if not isinstance(found, Group):
            return ((found.name, tag),)
        spec = _spec_of(call, found)
        return None if spec is None else ((found.name, tag), *((each.name, each.tag) for each in spec.members))

    def _doubts(self, owners: tuple[tuple[str, int], ...], known: Doubts) -> set[str]:
        """What has to be read before it is certain that what the table says of tags is so on disk too."""
        if (doubts := known.get(owners)) is None:
            served = [(name, tag) for name, tag in owners if tag in self.loader.table]
            doubts = known[owners] = self.ownership.doubts(served)
        return doubts

    def _coming(self, owners: Sequence[tuple[str, int]]) -> list[str]:
        """Members of a group that are in the repository, and still to be loaded here."""
        return [name for name, tag in owners if tag not in self.loader.table and self._has(name, tag)]

    def _has(self, name: str, tag: int) -> bool:
        with suppress(OSError):
            return self.loader.repository.tag(name) == tag
        return False

    def _enter(self, call: Call, found: Answering) -> None:
        if isinstance(found, Refusal):
            _refuse(call, found.counts, found.error)
        elif isinstance(found, Group):
            self._enter_group(call, found)
        else:
            self._enter_task(call, found)

    def _enter_task(self, call: Call, vfm: Vfm) -> None:
        vfm.intake.add(requests=1)
        request = self._request(call, vfm, call.send)
        request.requested_outputs = tuple([output for output in call.outputs if tag_of(output) is None])
        try:
            request.slo_s = _slo_s(call.parameters)
            if not self._answer_from_cache(request):
                self.preparation.submit(request)
        except Exception as error:
            _refuse(call, request.vfm.intake, _as_refusal(error))
        else:
            self._fail_if_closed(request)

    def _enter_group(self, call: Call, group: Group) -> None:
        """A request for each member that can be asked; each of the others has its error in the reply."""
        group.counts.add(requests=1)
        try:
            spec = _spec_of(call, group)
            if spec is None:
                raise GroupChanged(
                    f"the entry of the group {group.name!r} is not the one that the server has loaded. Load it again: "
                    f"fmplex task load {group.name}"
                )
            slo_s = _slo_s(call.parameters) or spec.slo
        except FmplexError as error:
            _refuse(call, group.counts, error)
            return
        gathering = Gathering(spec, call.send)
        try:
            requests = list(self._requests(call, spec, gathering, slo_s))
            self.preparation.submit_together([request for request in requests if not self._answer_from_cache(request)])
            for request in requests:
                self._fail_if_closed(request)
        except Exception as error:
            gathering.fail(_as_refusal(error))

    def _requests(self, call: Call, spec: GroupSpec, gathering: Gathering, slo_s: float | None) -> Iterator[Request]:
        for position, member in enumerate(spec.members):
            send, found = partial(gathering.take, position), self.loader.table.get(member.tag)
            try:
                request = self._request(call, vfm_of(spec, member, found), send)
            except FmplexError as error:
                if isinstance(found, Refusal):
                    found.counts.fail(error.reason)
                send(Failed(error), True)
                continue
            request.requested_outputs = tuple(output.name for output in member.outputs)
            request.slo_s = slo_s
            yield request

    def _answer_from_cache(self, request: Request) -> bool:
        """Answer a request whose answer is kept; False where none is."""
        if (tensors := self.answers.find(request)) is None:
            return False
        self.replies.put(request, CachedAnswer(tensors))
        return True

    def _request(self, call: Call, vfm: Vfm, send: Send) -> Request:
        size = sum(map(bytes_of, call.inputs.values()))
        if (beside := self.loader.candidates.beside.get(vfm)) is not None:
            task, vfm = vfm, beside.chosen(vfm, call.request_id)
            if vfm is task and beside.shadow is not None:  # else a canary answers, and nothing is compared with it
                send = self.shadowing.copying(beside.shadow, call.inputs, size, call.parameters, send)
        return Request(
            vfm=vfm,
            inputs=call.inputs,
            requested_outputs=(),
            arrived_at=self.clock(),
            send=send,
            is_cancelled=call.is_cancelled,
            parameters=call.parameters,
            input_bytes=size,
            lane=next(self._turns) % REPLY_THREADS,
        )

    def _fail_if_closed(self, request: Request) -> None:
        if self._closed is not None:  # closed meanwhile: the engine may have ended
            request.resolve(Failed(self._closed))

    def _tag(self, outputs: Sequence[str]) -> int:
        if self._closed is not None:
            raise self._closed
        tags = {tag for tag in map(tag_of, outputs) if tag is not None}
        if len(tags) != 1:
            asked = "no task's tag" if not tags else f"{len(tags)} tasks' tags"
            raise InvalidRequest(f"{self.backbone!r} is a backbone and the request asks for {asked}: {self._instead()}")
        return tags.pop()

    def _instead(self) -> str:
        names = sorted(entry.name for entry in self.loader.table.values())
        return f"call a task instead: {', '.join(names[:20]) or '(none is in the repository)'}"


def _spec_of(call: Call, group: Group) -> GroupSpec | None:
    """The group's entry by which a call comes; None where it is none that is known here."""
    return group.asked_by({tag for tag in map(member_of, call.outputs) if tag is not None})


def _refuse(call: Call, counts: SharedCounts, error: FmplexError) -> None:
    counts.fail(error.reason)
    call.send(Failed(error), True)


def _as_refusal(error: Exception) -> FmplexError:
    if isinstance(error, FmplexError):
        return error
    return ExecutionFailed(f"preparing the request raised {type(error).__name__}: {error}")


def _slo_s(parameters: Mapping[str, Any]) -> float | None:
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
