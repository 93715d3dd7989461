"""Brings the vFMs of a backbone in step with the model repository, off the engine thread.

Of a round, `serving/rounds.py` reads the entries and says what has changed, `serving/version_loading.py` reads and
checks versions, and `serving/served_tasks.py` carries the changes out. Here is in which order, and on which thread.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence

from fmplex_backend.confinement import Confinement
from fmplex_backend.errors import FmplexError, TaskProblem
from fmplex_backend.repository.configs import CONFIG, backbone_stepped_into, read_config
from fmplex_backend.repository.tasks import Repository, TaskSpec
from fmplex_backend.serving.answer_cache import AnswerCache
from fmplex_backend.serving.engine import Engine
from fmplex_backend.serving.memory import give_back
from fmplex_backend.serving.reconcile import Attach, Refuse
from fmplex_backend.serving.rounds import Rounds
from fmplex_backend.serving.served_tasks import ServedTasks
from fmplex_backend.serving.standing import Standing, standings, standings_of_groups
from fmplex_backend.serving.table import Answering, Refusal, Table
from fmplex_backend.serving.tags import Models, UnknownModels
from fmplex_backend.serving.tasklog import TaskLog
from fmplex_backend.serving.version_loading import VersionLoading
from fmplex_backend.types import MAX_QUEUE_BYTES, Runtime, SharedCounts

REMOVAL_GRACE_S = 2.0
MOVED_GRACE_S = 30.0  # a load of a task may wait for a backbone's, and until it is through requests come as before
LARGE_BYTES = 4 << 20  # of a version: more than a LoRA adapter and a head of a small encoder
ALONE = Confinement()  # no roots beside a version itself
TABLE_EVERY_S = 0.02  # how often it is replaced, at least, while one version after the other is loaded


class Loader:
    """Reads the repository, loads extensions, tells the engine.

    `table` maps tags to what answers their requests. It is replaced as a whole, so that other threads read it without
    a lock. So are `standings` and the `beside` of `candidates`.

    Threads (see `Watch`, whose four call this; at the start of the service the thread that starts it calls `refresh`):

    =============  =========================================================  =====================================
    thread         calls                                                      where
    =============  =========================================================  =====================================
    watch          `settle`, after changes on disk                            in a turn
    tags           `settle`, `load_next`: versions one by one, with pauses    in turns; files are read between two
    tags           `unload_newcomers`                                         in no turn: it waits for the server
    look-up        `refresh`: what waiting requests need is loaded at once    in turns; files are read between two
    look-up        `prefetch`, `reserve`, for the controller's calls          in a turn, files too
    claims         `read_claims`, for requests of served tasks                in a turn
    any            `table`, `standings`, `has_left`, `has_read`               in no turn
    engine         what was posted to it: attach, retire, set terms           in no turn
    =============  =========================================================  =====================================

    A turn is the one lock. Versions are read outside of it, so that no request's round waits for another task's files;
    but what was prefetched and what is tried as a canary or a shadow is read in a turn.

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
        self.repository, self.engine = repository, engine
        self.task_log = TaskLog()
        self.loading = VersionLoading(runtime, confinement, engine.clock, self.task_log)
        self.tasks = ServedTasks(
            repository,
            engine,
            self.loading,
            answers or AnswerCache(0),
            self.task_log,
            max_queue=max_queue,
            max_queue_bytes=max_queue_bytes,
            max_seconds=max_seconds,
            grace=grace,
            moved_grace=moved_grace,
        )
        self.candidates, self.draining = self.tasks.candidates, self.tasks.draining
        self.rounds = Rounds(
            repository,
            self.tasks.served,
            models or UnknownModels(),
            engine.clock,
            self.task_log,
            slots=slots,
            grace=grace,
        )
        self.tags, self.groups = self.rounds.tags, self.rounds.groups
        self.table: Table = {}
        self.standings: Sequence[Standing] = ()  # of every task, replaced as a whole like `table`
        self._published = self.tags.claims  # that the table is made of
        self._compared = 0  # the number of the reading that was compared last with what is served
        self._table_at = 0.0  # when it was replaced, by the engine's clock
        self._this_turn, self._next_turn = threading.Lock(), threading.Lock()  # see `_turn`

    # -- rounds: any thread

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
        """Read the repository and carry out what has changed, but for versions to be loaded: `load_next` does that.

        False where the repository cannot be read. Any thread.
        """
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

    def load_next(self, only: Collection[str] | None = None) -> bool:
        """Load a version that is to be served, and let its task serve with it; False where none is left. Any thread.

        It is read while others have their turns: its task may have changed or left by then.
        """
        with self._turn():
            self._compare_latest()
            change = self.loading.next_due(only)
            if change is None:
                return False
            loaded = self.loading.take_prefetched(change.spec)
        if loaded is None:
            loaded = self.loading.read(change.spec)
        with self._turn():
            self._compare_latest()
            if change in self.loading.due:
                self.loading.due.remove(change)
                self.tasks.attach(change, loaded)
                self._publish_loaded(change)
        return True

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
            return self.loading.prefetching.read(spec)

    def reserve(self, name: str) -> tuple[int | None, float]:
        """Keep the tag of a task that was read by `prefetch` for it, where no other task's requests may come with it.

        Returns the tag, and the seconds that it is kept for; None where it is not. Any thread.
        """
        with self._turn():
            return self.loading.prefetching.reserve(name, self.rounds.is_free)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """The loader's one lock, in the order of asking: a thread that waits has it before the holder has it again."""
        with self._next_turn:
            self._this_turn.acquire()
        try:
            yield
        finally:
            self._this_turn.release()

    # -- the parts of a round: in a turn

    def _read_claims(self, names: Iterable[str] | None) -> bool:
        if not self.rounds.read(names, self.loading.prefetching.reserved):
            return False
        self.table = {**self.table, **self._contested_tags()}
        self._published = self.tags.claims
        return True

    def _compare_latest(self) -> None:
        """Begin a round where the repository was read since the last began: `loading.due` is of that reading then."""
        if self._compared != self.rounds.readings:
            self._begin_round()

    def _begin_round(self) -> None:
        """Carry out every change that is due, but for those that load a version."""
        self.loading.keep_refused(self.rounds.names)
        due = self.rounds.compare(self.loading.refused)
        self.tasks.refused, self._compared = {}, self.rounds.readings
        self.loading.due = [change for change in due if isinstance(change, Attach)]
        for change in due:
            if not isinstance(change, Attach):
                self.tasks.apply(change)
        if not self.loading.due:
            self._forget_refusals()
        self._replace_table()
        if any(version.size >= LARGE_BYTES for version in self.loading.prefetching.drop_expired()):
            give_back()

    def _publish_loaded(self, change: Attach) -> None:
        """Replace the table after a version was loaded; of many after a time, since a table is made of all tasks."""
        is_last = not self.loading.due
        if is_last or self.engine.clock() >= self._table_at + TABLE_EVERY_S:
            self._replace_table()
        if is_last:
            self._forget_refusals()
        if change.spec.version.size >= LARGE_BYTES:
            give_back()

    def _forget_refusals(self) -> None:
        """Once every version of a round is loaded or refused."""
        self.task_log.forget_refusals(self.tasks.refused.keys(), self.tags.rivals.keys())

    # -- the table

    def _replace_table(self) -> None:
        """Publish what answers each tag; vFMs that it does not refer to any more end after that.

        Requests that were taken in by the former table may still be prepared, or about to be.
        """
        served, refused = self.tasks.served, self.tasks.refused
        table: dict[int, Answering] = {each.spec.vfm: each.vfm for each in served.values()}
        table = self.groups.table() | table
        for each in refused.values():
            if isinstance(each, Refuse) and each.vfm is not None:
                table[each.vfm] = self._refusal(each.name, each.vfm, each.error)
        table |= self._contested_tags()
        self._table_at = now = self.engine.clock()
        replaced = self.tasks.end_left(table)
        leaving = {tag: vfm for tag, (vfm, _) in self.tasks.leaving.items()}
        self.table = table | leaving
        self.standings = (*standings(served, refused, leaving), *standings_of_groups(self.groups))
        self._published = self.tags.claims
        for vfm, until in replaced.values():
            self.draining.add(vfm, min(self.tasks.grace, max(0.0, until - now)))
        self.draining.retire_due()

    def _contested_tags(self) -> dict[int, Refusal]:
        """Those with which requests of several tasks may come, of the tags that are asked for."""
        found = self.rounds.contested(self.tasks.leaving)
        return {tag: self._refusal(self.tags.last_keepers[tag], tag, error) for tag, error in found.items()}

    def _refusal(self, name: str, tag: int, error: FmplexError) -> Refusal:
        former = self.table.get(tag)
        goes_on = isinstance(former, Refusal) and former.name == name
        return Refusal(name, error, former.counts if goes_on and isinstance(former, Refusal) else SharedCounts())

    # -- what is left to do, and what was done: any thread

    @property
    def is_settled(self) -> bool:
        """Whether nothing changes before the repository does: False asks for another round soon."""
        waits = self.tags.rivals.keys() & self.tags.keepers.keys()
        leaving = self.tasks.leaving or self.groups.leaving or not self.draining.is_empty
        return not (waits or self.tags.newcomers or leaving) and self.loading.prefetching.is_empty

    @property
    def settles_in(self) -> float:
        """Seconds until another round may change something, as far as that is known; infinite where it is not."""
        return max(0.0, self.tags.until - self.engine.clock())

    def has_left(self, tag: int) -> bool:
        """Whether the task that a tag is answered for has left the repository, or moved. Any thread."""
        return tag in self.tasks.leaving or tag in self.groups.leaving

    def has_read(self, name: str, tag: int) -> bool:
        """Whether the table says who has the tag that an entry claims. Any thread.

        A table that was taken before this was asked may be an older one. Its tasks that have left are not answered for
        by then: `has_left` is false.
        """
        return name in self._published.by_tag.get(tag, ())
