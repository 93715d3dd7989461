"""Brings the vFMs of a backbone in step with the model repository, off the engine thread.

A round of `refresh` reads the entries, compares them with what is served (`serving/reconcile.py`) and carries out the
changes: files are read and checked here, and the engine attaches what is ready between two batches.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from fmplex_backend.confinement import Confinement
from fmplex_backend.errors import ExecutionFailed, FmplexError, TaskProblem, TaskRefused
from fmplex_backend.repository.check import load_checked
from fmplex_backend.repository.configs import CONFIG, backbone_stepped_into, read_config
from fmplex_backend.repository.groups import GroupSpec
from fmplex_backend.repository.tasks import BrokenTask, Entry, Repository, TaskSpec
from fmplex_backend.serving.answer_cache import AnswerCache
from fmplex_backend.serving.candidates import Candidates
from fmplex_backend.serving.ending import Ending
from fmplex_backend.serving.engine import Engine
from fmplex_backend.serving.groups import Groups
from fmplex_backend.serving.memory import give_back
from fmplex_backend.serving.prefetching import Prefetching
from fmplex_backend.serving.reconcile import (
    Attach,
    Change,
    KeepFormer,
    Refuse,
    RefusedVersion,
    Retire,
    Served,
    SetTerms,
    Settling,
    changes,
    changes_of_refused,
    changes_without_former,
    contested,
    without_conflicts,
)
from fmplex_backend.serving.standing import Standing, standings, standings_of_groups
from fmplex_backend.serving.table import Answering, Refusal, Table
from fmplex_backend.serving.tags import Models, Tags, Unasked
from fmplex_backend.serving.tasklog import TaskLog
from fmplex_backend.types import LEAST_WEIGHT, MAX_QUEUE_BYTES, Counts, Extensions, Runtime, Vfm

log = logging.getLogger("fmplex")
Found = TypeVar("Found")

REMOVAL_GRACE_S = 2.0
MOVED_GRACE_S = 30.0  # a load of a task may wait for a backbone's, and until it is through requests come as before
LARGE_BYTES = 4 << 20  # of a version: more than a LoRA adapter and a head of a small encoder
ALONE = Confinement()  # no roots beside a version itself
TABLE_EVERY_S = 0.02  # how often it is replaced, at least, while one version after the other is loaded
RETRY_S = 5.0  # what raised when it was loaded is loaded again after this time


class Loader:
    """Reads the repository, loads extensions, tells the engine.

    `table` maps tags to what answers their requests. It is replaced as a whole, so that other threads read it without
    a lock.

    Args:
        max_queue, max_queue_bytes, max_seconds: of vFMs whose task does not set them.
        slots: tags from 0 to slots - 1 exist.
        grace: seconds that a task which was removed is still served, where no other task claims its tag.
        moved_grace: the same for one that has another tag or backbone now.
        confinement: what a version may have read.
        models: the server's.
        answers: where the answers of tasks are kept whose entry says `cache`.
    """

    def __init__(
        self,
        repository: Repository,
        runtime: Runtime,
        engine: Engine,
        *,
        max_queue: int,
        slots: int,
        max_queue_bytes: int = MAX_QUEUE_BYTES,
        max_seconds: float = math.inf,
        grace: float = REMOVAL_GRACE_S,
        moved_grace: float = MOVED_GRACE_S,
        confinement: Confinement = ALONE,
        models: Models | None = None,
        answers: AnswerCache | None = None,
    ) -> None:
        self.repository, self.runtime, self.engine = repository, runtime, engine
        self.max_queue, self.max_queue_bytes, self.max_seconds = max_queue, max_queue_bytes, max_seconds
        self.slots, self.grace, self.moved_grace = slots, grace, moved_grace
        self.confinement = confinement
        self.models: Models = models or Unasked()
        self.answers = answers or AnswerCache(0)
        self.tags = Tags(
            engine.clock,
            models=self.models,
            has_moved=self._has_moved,
            oldest=repository.oldest,
            grace=grace,
        )
        self.groups = Groups(grace)
        self.ending = Ending(self._retire_soon, engine.clock)
        self.candidates = Candidates(self._load_version, self._attach_soon, self.ending, grace)
        self.table: Table = {}
        self.standings: Sequence[Standing] = ()  # of every task, replaced as a whole like `table`
        self.log = TaskLog()
        self._published = self.tags.claims  # that the table is made of
        self._entries: dict[str, Entry] = {}
        self._served: dict[str, Served] = {}
        self._refused: dict[str, Refuse | KeepFormer] = {}  # in this round
        self._refused_versions: dict[str, RefusedVersion] = {}
        self._raised: dict[str, tuple[RefusedVersion, float]] = {}  # and until when it is not loaded again
        self._prefetching = Prefetching(self._load_version, engine.clock)
        self._leaving: dict[int, tuple[Vfm, float]] = {}  # by tag: served until this time of the engine's clock
        self._readings = 0  # of the repository
        self._attaches: list[Attach] = []  # versions to be loaded, as of this reading:
        self._round_of = 0
        self._table_at = 0.0  # when it was replaced, by the engine's clock
        self._this_turn, self._next_turn = threading.Lock(), threading.Lock()  # see `_turn`

    def refresh(self, names: Iterable[str] | None = None, only: Collection[str] | None = None) -> None:
        """Bring the vFMs in step with the repository. Any thread.

        Args:
            names: the directories to be read; None: all.
            only: the tasks whose versions are loaded, where they are to be; None: all.
        """
        if self.settle(names):
            while self.load_next(only):
                pass

    def settle(self, names: Iterable[str] | None = None) -> bool:
        """The same, but for versions that are to be loaded: `load_next` does that. False where nothing can be read."""
        with self._turn():
            is_read = self._read_claims(names)
            if is_read:
                self._begin_round()
            return is_read

    def read_claims(self, names: Iterable[str] | None = None) -> None:
        """Read the repository, and say of the tags of served tasks who claims them now. Any thread.

        Nothing that came is loaded, nothing that left is retired: requests of served tasks need not wait for that.
        """
        with self._turn():
            self._read_claims(names)

    def _read_claims(self, names: Iterable[str] | None) -> bool:
        try:
            self._read(names)
        except OSError as error:  # a file system that is away for a moment must not remove every task
            log.error("the model repository cannot be read, the tasks stay as they are: %s", error)
            return False
        self._readings += 1
        self.tags.settle(self._entries, self._prefetching.reserved)
        self.table = {**self.table, **self._contested_tags()}
        self._published = self.tags.claims
        return True

    def load_next(self, only: Collection[str] | None = None) -> bool:
        """Load a version that is to be served, and let its task serve with it; False where none is left. Any thread.

        It is read while others have their turns: its task may have changed or left by then.
        """
        with self._turn():
            due = (change for change in self._attaches_due() if only is None or change.spec.name in only)
            change = next(due, None)
            if change is None:
                return False
            loaded = _tried(self._prefetching.take, change.spec)
        if loaded is None:
            loaded = _tried(self._read_version, change.spec)
        with self._turn():
            if change in self._attaches_due():
                self._attaches.remove(change)
                self._attach(change, loaded)
                if not self._attaches or self.engine.clock() >= self._table_at + TABLE_EVERY_S:
                    self._replace_table()
                if not self._attaches:
                    self._forget_refusals()
                if change.spec.version.size >= LARGE_BYTES:
                    give_back()
        return True

    def _attaches_due(self) -> list[Attach]:
        """Versions to be loaded, as the repository was read last."""
        if self._round_of != self._readings:
            self._begin_round()
        return self._attaches

    def _begin_round(self) -> None:
        """Carry out every change that is due, but for those that load a version."""
        due = self._due()
        self._refused, self._round_of = {}, self._readings
        self._attaches = [change for change in due if isinstance(change, Attach)]
        for change in due:
            if not isinstance(change, Attach):
                self._apply(change)
        if not self._attaches:
            self._forget_refusals()
        self._replace_table()
        if any(version.size >= LARGE_BYTES for version in self._prefetching.drop_expired()):
            give_back()

    def _forget_refusals(self) -> None:
        """Once every version of a round is loaded or refused."""
        self.log.forget_refusals(self._refused.keys(), self.tags.rivals.keys())

    def _due(self) -> list[Change]:
        """Every change that is due."""
        entries = without_conflicts(
            self._entries,
            self.tags.claims.by_tag,
            self.tags.keepers,
            slots=self.slots,
            root=self.repository.root,
            backbone=self.repository.backbone,
        )
        for name in self._refused_versions.keys() - entries.keys():
            del self._refused_versions[name]
        groups = {name: entry for name, entry in entries.items() if isinstance(entry, GroupSpec)}
        tasks = {name: entry for name, entry in entries.items() if not isinstance(entry, GroupSpec)}
        refused = [name for name, entry in tasks.items() if isinstance(entry, BrokenTask)]
        self.groups.settle(groups, refused, self.engine.clock())
        now = self.engine.clock()
        raised = {name: version for name, (version, until) in self._raised.items() if now < until}
        return changes(self._served, tasks, {**self._refused_versions, **raised})

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Of a thread that reads or loads. Who waits for one has it before the thread whose turn it is has another."""
        with self._next_turn:
            self._this_turn.acquire()
        try:
            yield
        finally:
            self._this_turn.release()

    def prefetch(self, name: str) -> str | None:
        """Read the version of a task that is about to be bound to this backbone: then it is served at once. Any thread.

        Returns why it would be refused, "" where it would not be; None where no other backbone has such a task, or
        it is too soon after another reading, see `Prefetching`. A client may have given the name.
        """
        root = self.repository.root
        try:
            if not self.repository.has(name):
                return None
            proto = read_config(root / name / CONFIG)
            backbone = backbone_stepped_into(proto)
            spec = Repository(root, backbone).entry_of(name, proto) if backbone else None
        except (TaskProblem, OSError):
            return None
        if not isinstance(spec, TaskSpec) or backbone == self.repository.backbone:
            return None
        with self._turn():
            return self._prefetching.read(spec)

    def reserve(self, name: str) -> tuple[int | None, float]:
        """Keep the tag of a task that was read by `prefetch` for it, where no other task's requests may come with it.

        Returns the tag, and the seconds that it is kept for; None where it is not. Any thread.
        """
        with self._turn():
            return self._prefetching.reserve(name, self._is_free)

    def _is_free(self, tag: int, name: str) -> bool:
        return tag < self.slots and self.tags.is_free(tag, name)

    def _read(self, names: Iterable[str] | None) -> None:
        looked = None if names is None else set(names)
        found = self.repository.read(looked, self._entries)
        kept = {} if looked is None else {name: e for name, e in self._entries.items() if name not in looked}
        self._entries = kept | found

    def _contested_tags(self) -> dict[int, Refusal]:
        """Those with which requests of several tasks may come, of the tags that are asked for."""
        asked_for = {*self.tags.keepers, *self._leaving}
        return {tag: self._contested(tag, rivals) for tag, rivals in self.tags.rivals.items() if tag in asked_for}

    def _replace_table(self) -> None:
        """Publish what answers each tag; vFMs that it does not refer to any more end after that.

        Requests that were taken in by the former table may still be prepared, or about to be.
        """
        table: dict[int, Answering] = {served.spec.vfm: served.vfm for served in self._served.values()}
        table = self.groups.table() | table
        for refused in self._refused.values():
            if isinstance(refused, Refuse) and refused.vfm is not None:
                table[refused.vfm] = self._refusal(refused.name, refused.vfm, refused.error)
        table |= self._contested_tags()
        self._table_at = now = self.engine.clock()
        ended = [tag for tag, (_, until) in self._leaving.items() if tag in table or now >= until]
        replaced = [self._leaving.pop(tag) for tag in ended]
        leaving = {tag: vfm for tag, (vfm, _) in self._leaving.items()}
        self.table = table | leaving
        of_tasks = standings(self._served, self._refused, leaving)
        self.standings = (*of_tasks, *standings_of_groups(self.groups))
        self._published = self.tags.claims
        for vfm, until in replaced:
            self.ending.add(vfm, min(self.grace, max(0.0, until - now)))
        self.ending.retire_due()

    @property
    def is_settled(self) -> bool:
        """Whether nothing changes before the repository does: False asks for another round soon."""
        waits = self.tags.rivals.keys() & self.tags.keepers.keys()
        leaving = self._leaving or self.groups.leaving or not self.ending.is_empty
        return not (waits or self.tags.newcomers or leaving) and self._prefetching.is_empty

    @property
    def settles_in(self) -> float:
        """Seconds until another round may change something, as far as that is known; infinite where it is not."""
        return max(0.0, self.tags.until - self.engine.clock())

    def has_left(self, tag: int) -> bool:
        """Whether the task that a tag is answered for has left the repository, or moved. Any thread."""
        return tag in self._leaving or tag in self.groups.leaving

    def has_read(self, name: str, tag: int) -> bool:
        """Whether the table says who has the tag that an entry claims. Any thread.

        A table that was taken before this was asked may be an older one. Its tasks that have left are not answered for
        by then: `has_left` is false.
        """
        return name in self._published.by_tag.get(tag, ())

    def unload_newcomers(self) -> None:
        """Take tasks whose tag another one keeps off the server: their requests are answered by nobody then.

        Not in a turn of its own, and not on the engine's thread: the server may take its time.
        """
        for tag, names in self.tags.loaded_newcomers.items():
            for name in names:
                self._unload(name, tag)

    def _unload(self, name: str, tag: int) -> None:
        try:
            if self.repository.tag(name) == tag and self.models.is_loaded(name):  # it may have another tag by now
                self.models.unload(name)
                self.log.unloaded(name, tag, self.tags.last_keepers[tag])
        except FmplexError as error:
            self.log.stays_loaded(name, str(error))
        except OSError:
            return  # its entry is gone, or cannot be read now

    def _has_moved(self, name: str, tag: int) -> bool:
        group = self.groups.served.get(name)
        if group is not None:
            return group.spec.vfm != tag and group.counts.requests > 0
        served = self._served.get(name)
        return served is not None and served.spec.vfm != tag and served.vfm.intake.requests > 0

    def _contested(self, tag: int, rivals: Sequence[str]) -> Refusal:
        keeper, newcomers = self.tags.last_keepers[tag], self.tags.newcomers.get(tag, ())
        error = contested(tag, keeper, rivals, newcomers, self.repository.root)
        self.log.contested(tag, str(error))
        return self._refusal(keeper, tag, error)

    def _refusal(self, name: str, tag: int, error: FmplexError) -> Refusal:
        former = self.table.get(tag)
        goes_on = isinstance(former, Refusal) and former.name == name
        return Refusal(name, error, former.counts if goes_on and isinstance(former, Refusal) else Counts())

    # -- one change

    def _apply(self, change: Settling) -> None:
        match change:
            case SetTerms():
                self._serve(change.spec, change.former.vfm)
            case KeepFormer():
                self._keep_former(change)
            case Refuse():
                self._refused[change.name] = change
                self.log.refused(change.name, str(change.error))
            case Retire():
                self._retire(change)

    def _attach(self, change: Attach, loaded: Extensions | Exception) -> None:
        spec, former = change.spec, change.former
        if isinstance(loaded, Exception):
            for consequence in changes_of_refused(spec, former, self._refusal_of(spec, loaded)):
                self._apply(consequence)
            return
        self._refused_versions.pop(spec.name, None)
        self._raised.pop(spec.name, None)
        vfm = former.vfm if former else Vfm(spec.vfm, spec.name)
        if former is None:
            vfm.extensions = loaded  # so that requests can be prepared before the engine has attached them
        self._attach_soon(vfm, loaded)
        self._serve(spec, vfm, spec.ahead_s if former is None else 0.0)

    def _refusal_of(self, spec: TaskSpec, raised: Exception) -> TaskRefused:
        if isinstance(raised, TaskRefused):
            error = raised.without_traceback()
            self._refused_versions[spec.name] = RefusedVersion(spec, error)
            return error
        self.log.raised(spec.name, raised)
        problem = f"loading it raised {type(raised).__name__}: {raised}"
        error = TaskRefused(spec.version.path, "(whole version)", problem, "See the server's log")
        self._raised[spec.name] = RefusedVersion(spec, error), self.engine.clock() + RETRY_S
        return error

    def _load_version(self, spec: TaskSpec) -> Extensions:
        found = self._prefetching.take(spec)
        return self._read_version(spec) if found is None else found

    def _read_version(self, spec: TaskSpec) -> Extensions:
        with self.confinement.around(spec.version.path, spec.version.size):
            return load_checked(self.runtime.load, spec)

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
        self._served[spec.name] = Served(spec, vfm)
        self.log.serves(spec)

    def _keep_former(self, change: KeepFormer) -> None:
        spec, former = change.spec, change.former
        version = former.spec.version
        if not version.intact():
            for consequence in changes_without_former(spec, former, change.error):
                self._apply(consequence)
            return
        self._refused[spec.name] = change
        self.log.refused(spec.name, f"{change.error} (version {version.number} goes on serving)")
        kept = replace(spec, version=version, outputs=former.spec.outputs)
        if kept != former.spec:
            self._serve(kept, former.vfm)

    def _retire(self, change: Retire) -> None:
        spec, vfm = change.served.spec, change.served.vfm
        grace = 0.0 if change.cause == "refused" else self.grace
        if change.cause == "moved" or (change.cause == "removed" and self._is_elsewhere(spec.name)):
            grace = self.moved_grace
        self._leaving[spec.vfm] = (vfm, self.engine.clock() + grace)
        self.candidates.drop(vfm)
        self._served.pop(spec.name)
        if change.cause == "removed":
            self.log.removed(spec.name)

    def _is_elsewhere(self, name: str) -> bool:
        """Whether a task that is not in the entries any more is bound to another backbone."""
        try:
            return bool(backbone_stepped_into(read_config(self.repository.root / name / CONFIG)))
        except TaskProblem:
            return False


def _tried(load: Callable[[TaskSpec], Found], spec: TaskSpec) -> Found | Exception:
    """What it gives, or raises: one task's files must not take the others down."""
    try:
        return load(spec)
    except Exception as error:
        return error


def _set_part(vfm: Vfm, part: float, spec: TaskSpec) -> None:
    """Give a vFM its part of what the task may have, of which it has some at least."""
    vfm.set_weight(max(LEAST_WEIGHT, part * spec.weight))
    vfm.max_running = None if spec.max_running is None else max(1, round(part * spec.max_running))
    vfm.max_kv_share = None if spec.max_kv_share is None else part * spec.max_kv_share
