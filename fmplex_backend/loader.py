"""Keeps a backbone's vFMs in step with the model repository, off the engine thread.

Files are read and checked here; the engine only swaps what is ready, between two batches. `table` is what a
request's tag is looked up in: it is replaced whole, so that readers need no lock.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from watchfiles import watch

from fmplex_backend.engine import Engine
from fmplex_backend.errors import ExecutionFailed, FmplexError, TaskRefused
from fmplex_backend.promises import check_entry
from fmplex_backend.repository import BrokenTask, Entry, Repository, TaskSpec
from fmplex_backend.types import Runtime
from fmplex_backend.vfm import Counts, Vfm

log = logging.getLogger("fmplex")

SETTLE_MS = 2  # quiet time after which a change on disk is read
GATHER_MS = 10  # changes are read at least this often while they go on
RESCAN_MS = 5_000  # everything is looked at this often: file systems that give no notice exist
GRACE_S = 2.0
LOOK_S = 1.0  # the same, where it is known that no notice comes


@dataclass(frozen=True, slots=True)
class Served:
    """A task that runs: what stood on disk when it was loaded, and its vFM."""

    spec: TaskSpec
    vfm: Vfm


@dataclass(frozen=True, slots=True)
class Refusal:
    """A task that is answered with an error."""

    name: str
    error: FmplexError
    counts: Counts


Table = Mapping[int, Vfm | Refusal]


class Loader:
    """Reads the repository, loads extensions, tells the engine.

    Args:
        max_queue: the bound of vFMs whose task names none.
        slots: tags from 0 to this, exclusive, exist.
        grace: seconds that a task which left the repository, or went to another backbone, is still answered for.
    """

    def __init__(
        self,
        repository: Repository,
        runtime: Runtime,
        engine: Engine,
        *,
        max_queue: int,
        slots: int,
        grace: float = GRACE_S,
    ) -> None:
        self.repository, self.runtime, self.engine = repository, runtime, engine
        self.max_queue, self.slots, self.grace = max_queue, slots, grace
        self.table: Table = {}
        self.refused_by_name: dict[str, str] = {}  # for the log: each refusal is said once
        self._entries: dict[str, Entry] = {}
        self._served: dict[str, Served] = {}
        self._failed: dict[str, tuple[TaskSpec, TaskRefused]] = {}
        self._leaving: dict[int, tuple[Vfm, float]] = {}  # by tag: until when
        self._wanted: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._stop = threading.Event()
        self._reading = threading.Lock()  # a scan at a time: the watcher's or one a request asked for

    # -- threads

    def watch_forever(self) -> None:
        """Follow changes on disk until stopped; where the system gives no notice of them, look again and again."""
        try:
            self._follow()
        except (OSError, RuntimeError) as error:
            log.warning("changes in %s are looked for every second: %s", self.repository.root, error)
            while not self._stop.wait(LOOK_S):
                self.refresh()

    def _follow(self) -> None:
        changes = watch(
            self.repository.root,
            stop_event=self._stop,
            debounce=GATHER_MS,
            step=SETTLE_MS,
            rust_timeout=RESCAN_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
            watch_filter=None,  # its default leaves out paths with e.g. site-packages in them, wherever they stand
        )
        for batch in changes:
            self.refresh(self._names(path for _, path in batch) if batch else None)

    def serve_questions(self) -> None:
        """Look again for whoever asks with a tag that is not in the table; until stopped."""
        while (answer := self._wanted.get()) is not None:
            answers = [answer]
            while not self._wanted.empty():  # one look serves all who have asked by now
                if (another := self._wanted.get()) is None:
                    self._wanted.put(None)
                    break
                answers.append(another)
            try:
                self.refresh()
                while answers:
                    answers.pop(0)()
            finally:
                for left in answers:  # on the way down: `unanswered` has them
                    self._wanted.put(left)

    def unanswered(self) -> list[Callable[[], None]]:
        """Questions that are left when nobody serves them any more. Any thread."""
        left = []
        with suppress(Empty):
            while True:
                if (question := self._wanted.get_nowait()) is not None:
                    left.append(question)
        self._wanted.put(None)  # for the thread, where it is still there
        return left

    def look_again(self, then: Callable[[], None]) -> None:
        """Read the repository, then call (on the loader's thread)."""
        self._wanted.put(then)

    def stop(self) -> None:
        """End both threads."""
        self._stop.set()
        self._wanted.put(None)

    # -- one round

    def refresh(self, names: Iterable[str] | None = None) -> None:
        """Bring the vFMs in step with what is on disk now; `names` limits the look to these directories."""
        with self._reading:
            try:
                looked = list(self.repository.names() if names is None else names)
                found = self.repository.read(looked)
            except OSError as error:  # a file system that is away for a moment must not remove every task
                log.error("the model repository cannot be read, the tasks stay as they are: %s", error)
                return
            kept = {} if names is None else {n: e for n, e in self._entries.items() if n not in looked}
            self._entries = kept | found
            self._apply(self._without_conflicts(self._entries))

    def _names(self, paths: Iterable[str]) -> set[str]:
        root = self.repository.root
        inside = (Path(path) for path in paths)
        return {path.relative_to(root).parts[0] for path in inside if path != root and root in path.parents}

    def _without_conflicts(self, entries: Mapping[str, Entry]) -> dict[str, Entry]:
        """Turn tasks that share a tag, or ask for one that is not there, into broken ones."""
        by_tag: dict[int, list[str]] = {}
        for name, entry in entries.items():
            if entry.vfm is not None:
                by_tag.setdefault(entry.vfm, []).append(name)
        checked = dict(entries)
        for tag, names in by_tag.items():
            if len(names) > 1 or tag >= self.slots:
                for name in names:
                    others = ", ".join(repr(other) for other in names if other != name)
                    problem = (
                        f"VFM_{tag} is the tag of {others} too"
                        if others
                        else f"VFM_{tag} is beyond the backbone's vfm_slots of {self.slots}"
                    )
                    checked[name] = BrokenTask(name, tag, self._tag_error(name, problem))
        return checked

    def _tag_error(self, name: str, problem: str) -> TaskRefused:
        return TaskRefused(
            self.repository.root / name / "config.pbtxt",
            "ensemble_scheduling.step.output_map",
            problem,
            f"Give it a tag below {self.slots} that no other task on {self.repository.backbone!r} has",
        )

    def _apply(self, entries: Mapping[str, Entry]) -> None:
        table: dict[int, Vfm | Refusal] = {}
        served: dict[str, Served] = {}
        retired = dict(self._served)
        for name, entry in entries.items():
            former = retired.get(name)
            if former is not None and former.spec.vfm != entry.vfm:
                former = None
            now = entry if isinstance(entry, BrokenTask) else self._bring_up(entry, former)
            if isinstance(now, Served):
                table[now.spec.vfm] = now.vfm
                served[name] = now
                if former is not None:
                    retired.pop(name)
            elif now.vfm is not None:
                table[now.vfm] = self._refusal(name, now.vfm, now.error)
        for name, gone in retired.items():
            moved = not isinstance(entries.get(name), BrokenTask)
            self._leaving[gone.spec.vfm] = (gone.vfm, self.engine.clock() + (self.grace if moved else 0.0))
        ended = self._let_go(table)
        self._say(entries, served, table)
        self._served, self.table = served, table
        for vfm in ended:  # after the table; what was being prepared meanwhile the engine answers
            self.engine.post(partial(self.engine.retire, vfm))

    def _let_go(self, table: dict[int, Vfm | Refusal]) -> list[Vfm]:
        """Keep those that left within the grace in the table: Triton may still send by the entry it has loaded."""
        now = self.engine.clock()
        ended = [tag for tag, (_, until) in self._leaving.items() if tag in table or now >= until]
        gone = [self._leaving.pop(tag)[0] for tag in ended]
        table |= {tag: vfm for tag, (vfm, _) in self._leaving.items()}
        return gone

    def _refusal(self, name: str, tag: int, error: FmplexError) -> Refusal:
        former = self.table.get(tag)
        same = isinstance(former, Refusal) and former.name == name
        return Refusal(name, error, former.counts if same and isinstance(former, Refusal) else Counts())

    def _bring_up(self, spec: TaskSpec, former: Served | None) -> Served | BrokenTask:
        """Make a task's vFM what its spec says; a new version that is broken leaves the former one serving."""
        if former is not None and former.spec == spec:
            return former
        if former is not None and former.spec.version == spec.version and former.spec.outputs == spec.outputs:
            self._set_terms(former.vfm, spec)
            return Served(spec, former.vfm)
        loaded = self._load(spec)
        if isinstance(loaded, TaskRefused):
            return self._fall_back(spec, former, loaded) or BrokenTask(spec.name, spec.vfm, loaded)
        vfm = former.vfm if former else Vfm(spec.vfm, spec.name)
        if former is None:
            vfm.extensions = loaded  # so that a request can be prepared before the engine has attached them
        self.engine.post(partial(self._attach, vfm, loaded))
        self._set_terms(vfm, spec)
        return Served(spec, vfm)

    def _load(self, spec: TaskSpec) -> Any:
        """The version's extensions, or why not; what was refused is not read again until it changes."""
        failed = self._failed.get(spec.name)
        if failed is not None and failed[0] == spec:
            return failed[1]
        try:
            extensions = self.runtime.load(spec.version.path)
            check_entry(spec, extensions)
        except TaskRefused as error:
            self._failed[spec.name] = (spec, error)
            return error
        except Exception as error:  # one task's files must not take the others down; the next look tries again
            log.exception("loading task %s", spec.name)
            raised = f"loading it raised {type(error).__name__}: {error}"
            return TaskRefused(spec.version.path, "(whole version)", raised, "See the server's log")
        self._failed.pop(spec.name, None)
        return extensions

    def _fall_back(self, spec: TaskSpec, former: Served | None, error: TaskRefused) -> Served | None:
        """The former version, where it still stands on disk untouched, on the new terms."""
        if former is None or former.spec.version.number == spec.version.number or not former.spec.version.intact():
            return None
        kept = replace(spec, version=former.spec.version, outputs=former.spec.outputs)
        self._note(spec.name, f"{error} (version {former.spec.version.number} goes on serving)")
        if kept != former.spec:
            self._set_terms(former.vfm, spec)
        return Served(kept, former.vfm)

    def _attach(self, vfm: Vfm, extensions: Any) -> None:
        try:
            self.engine.attach(vfm, extensions, adapted=extensions.adapter is not None)
        except Exception as error:  # no memory for one task's adapter is no reason to stop the others
            log.exception("attaching task %s", vfm.name)
            self.engine.refuse(vfm, ExecutionFailed(f"the extensions of {vfm.name!r} cannot be attached: {error}"))

    def _set_terms(self, vfm: Vfm, spec: TaskSpec) -> None:
        vfm.max_queue = spec.max_queue or self.max_queue

        def on_engine() -> None:
            vfm.weight, vfm.slo = spec.weight, spec.slo

        self.engine.post(on_engine)

    # -- saying it

    def _say(self, entries: Mapping[str, Entry], served: Mapping[str, Served], table: Table) -> None:
        for name in self._served.keys() - entries.keys():
            log.info("task %s removed", name)
        for name, now in served.items():
            before = self._served.get(name)
            if before is None or before.spec != now.spec:
                log.info(
                    "task %s: VFM_%d, version %d, weight %g",
                    name,
                    now.spec.vfm,
                    now.spec.version.number,
                    now.spec.weight,
                )
                self.refused_by_name.pop(name, None)
        for entry in [*table.values(), *entries.values()]:
            if isinstance(entry, Refusal | BrokenTask) and entry.name not in served:
                self._note(entry.name, str(entry.error))

    def _note(self, name: str, text: str) -> None:
        if self.refused_by_name.get(name) != text:
            self.refused_by_name[name] = text
            log.error("task %s refused: %s", name, text)
