"""Writing tasks into a model repository atomically: a server sees the whole of a change, or nothing of it.

Files are written into a staging directory, beside the repository where that can be, and renamed into place, under a
lock; config.pbtxt is the last to change. Imports no torch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from google.protobuf import text_format

from fmplex_backend.errors import BackboneRefused, RepositoryLocked, TaskProblem, TaskRefused
from fmplex_backend.families import family
from fmplex_backend.repository.backbone import BackboneEntry
from fmplex_backend.repository.candidates import without_candidates
from fmplex_backend.repository.config import TaskConfig, load_backbone_config, load_task_config
from fmplex_backend.repository.configs import (
    CONFIG,
    Terms,
    backbone_parameters,
    merged,
    put_terms,
    read_config,
)
from fmplex_backend.repository.entry import TaskEntry, check_limits
from fmplex_backend.repository.loadable import check_loadable
from fmplex_backend.repository.reader import RepositoryReader
from fmplex_backend.repository.tags import NONE_TOLD, check_tag, free_tag, put_tag
from fmplex_backend.repository.tasks import BrokenTask, Repository, TaskSpec
from fmplex_backend.repository.terms import COMMON
from fmplex_backend.repository.versions import Version

LOCK = ".fmplex.lock"
LOCK_S = 60.0  # how long a writer waits for another one
MAX_BATCH_SIZE = 32
MIN_FREE_BYTES = 64 * 2**20  # many times an ordinary adapter and head


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A version to be saved: its task.json, the tensors that its entry declares, and what writes its files."""

    config: TaskConfig
    takes: str  # the input that its encoder reads
    takes_size: int | None  # the last dim of that, where it is fixed
    outputs: Mapping[str, int | None]  # every tensor it answers with -> its last dim, None where that varies
    write: Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Saved:
    """A task in a repository."""

    name: str
    path: Path  # of the version
    version: int
    vfm: int


class ModelRepository(RepositoryReader):
    """A directory of Triton models: its tasks are listed, saved, changed and removed."""

    def save(
        self,
        name: str,
        backbone: str,
        pipeline: Pipeline,
        terms: Terms,
        *,
        held: bool = False,
        holders: Mapping[int, str] = NONE_TOLD,
    ) -> Saved:
        """Save a new task, or the next version of one; raises TaskProblem.

        Args:
            held: whether the version that serves goes on, and the next one waits to be tried or promoted.
            holders: see `check_tag`.
        """
        if terms.cache:
            _check_cache(name, pipeline.config)
        with self._locked():
            tag = self._tag_for(name, backbone, terms, held=held, holders=holders)
            check_loadable(self.root / backbone)  # Triton reads it too when it loads a task
            if (self.root / name).exists():
                check_loadable(self.root / name)
                return self._next_version(name, backbone, pipeline, tag, terms, held=held)
            if held:
                raise TaskProblem(f"{name!r} is new: no version of it serves meanwhile. Save it without holding it")
            entry = self._entry(name, backbone, pipeline, tag, terms)
            with self._staging() as staging:
                (staging / name / "1").mkdir(parents=True)
                pipeline.write(staging / name / "1")
                (staging / name / CONFIG).write_text(entry.to_pbtxt(), encoding="utf-8")
                _readable(staging / name)
                (staging / name).rename(self.root / name)
            return Saved(name, self.root / name / "1", 1, entry.vfm)

    def check_place(
        self, name: str, backbone: str, terms: Terms, *, held: bool = False, holders: Mapping[int, str] = NONE_TOLD
    ) -> None:
        """Raise the TaskProblem that `save` would raise whatever is saved, and where the disk is full or read-only."""
        self._tag_for(name, backbone, terms, held=held, holders=holders)
        folder = self.root.resolve()
        for directory in (self._staged_in, folder):
            if not os.access(directory, os.W_OK):
                raise TaskProblem(f"{directory} cannot be written to. Save into another repository, or as its owner")
        free = shutil.disk_usage(folder).free
        if free < MIN_FREE_BYTES:
            raise TaskProblem(f"{folder} has {free / 2**20:.0f} MiB left, which may be too little. Make some room")

    def add_backbone(self, entry: BackboneEntry) -> Path:
        """Write a backbone's directory; raises as `check_free` does."""
        directory = self.root / entry.name
        with self._locked():
            self.check_free(entry.name)
            self._write_directory(entry.name, entry.to_pbtxt())
        return directory

    def _write_directory(self, name: str, config: str) -> None:
        """A new model whose version holds nothing: Triton wants one, and git keeps no empty directory."""
        with self._staging() as staging:
            (staging / name / "1").mkdir(parents=True)
            (staging / name / "1" / ".gitkeep").touch()
            (staging / name / CONFIG).write_text(config, encoding="utf-8")
            _readable(staging / name)
            (staging / name).rename(self.root / name)

    def check_free(self, name: str) -> None:
        """Raise TaskProblem where no new directory can have this name."""
        _check_name(name)
        if name in self.names() or (self.root / name).exists():
            raise TaskProblem(f"{self.root / name} exists. Choose another name, or remove that directory")

    def set(self, name: str, terms: Terms) -> None:
        """Change a task's terms, in effect with the backbone's next batch."""
        terms.check()
        with self._locked():
            _, spec = self.task(name)
            if limits := terms.given().keys() - {*COMMON, "cache"}:
                check_limits(load_task_config(spec.version.path / "task.json").family, limits)
            if terms.cache:
                _check_cache(name, load_task_config(spec.version.path / "task.json"))
            proto = self._proto(name)
            put_terms(proto, terms)
            self._replace_config(name, proto)

    def set_new_tag(self, name: str) -> int:
        """Give a task or a group a tag that no other one has, in effect when it is loaded again; returns it."""
        with self._locked():
            entries = self.entries()
            if name not in entries:
                self.task(name)  # raises, naming the tasks there are
            backbone, _ = entries[name]
            tag = self._free_tag(name, backbone)
            proto = self._proto(name)
            put_tag(proto, backbone, tag)
            proto.name = name  # a copy may still have that of the original
            self._replace_config(name, proto)
            return tag

    def rollback(self, name: str, to: int | None = None) -> Saved:
        """Serve another version: `to`, or the one before the one that is served; raises TaskProblem without it.

        While a version is tried as a canary or a shadow, that ends, and without `to` the version that serves stays,
        unless its directory is gone.
        """
        with self._locked():
            backbone, spec = self._switchable(name)
            versions = self.versions(name)
            served = spec.version.number
            back = served if spec.candidates and served in versions else None
            number = to or back or self._before(name, served, versions)
            self._check_there(name, number, versions)
            self._replace_config(name, without_candidates(self._serving(name, backbone, spec, number)))
            return Saved(name, self.root / name / str(number), number, spec.vfm)

    def remove(self, name: str) -> None:
        """Remove a task with all its versions; raises TaskProblem."""
        with self._locked():
            tasks = self.tasks()
            if name not in tasks:
                raise TaskProblem(
                    f"there is no task {name!r} in {self.root}, which has {', '.join(sorted(tasks))}. Name one of them"
                )
            self._move_away(name)

    # -- steps of these

    def _move_away(self, name: str) -> None:
        with self._staging() as staging:
            (self.root / name).rename(staging / name)

    def _switchable(self, name: str) -> tuple[str, TaskSpec]:
        """A task, with its backbone, that can serve another version, also where the one that its entry names is gone.

        Raises TaskProblem or TaskRefused: nothing else may be wrong with its entry.
        """
        try:
            return self.task(name)
        except TaskRefused:
            backbone, _ = self.tasks()[name]
            proto, versions = self._proto(name), self.versions(name)
            named = list(proto.version_policy.specific.versions)
            if len(named) != 1 or not versions or named[0] in versions or backbone not in self.backbones():
                raise
            proto.version_policy.specific.versions[:] = versions[-1:]
            spec = Repository(self.root, backbone).entry_of(name, proto)
            if isinstance(spec, BrokenTask):
                raise spec.error from None
            if not isinstance(spec, TaskSpec):
                raise
            return backbone, replace(spec, version=Version(named[0], self.root / name / str(named[0]), ()))

    def _check_there(self, name: str, number: int, versions: list[int]) -> None:
        if number not in versions:
            raise TaskProblem(
                f"{name!r} has no version {number}, but {', '.join(map(str, versions))}. Name one of them"
            )

    def _serving(self, name: str, backbone: str, spec: TaskSpec, number: int) -> Any:
        """A task's entry, as a ModelConfig message, so that it serves that version."""
        check_loadable(self.root / backbone)
        check_loadable(self.root / name)
        pipeline = self._saved(self.root / name / str(number), backbone, spec)
        # The highest is what the server takes without being told, and goes on from there.
        pinned = None if number == self.versions(name)[-1] else number
        entry = replace(self._entry(name, backbone, pipeline, spec.vfm, Terms()), version=pinned)
        return merged(self._proto(name), entry, Terms())

    def _before(self, name: str, served: int, versions: list[int]) -> int:
        earlier = [number for number in versions if number < served]
        if not earlier:
            later = [number for number in versions if number > served]
            remedy = f"Name a later one with --to: {', '.join(map(str, later))}" if later else "Save another one first"
            raise TaskProblem(f"{name!r} has no version before {served} to go back to. {remedy}")
        return earlier[-1]

    def _tag_for(self, name: str, backbone: str, terms: Terms, *, held: bool, holders: Mapping[int, str]) -> int:
        """The tag that a task has, or that a new one gets; raises TaskProblem where it cannot be saved."""
        _check_name(name)
        terms.check()
        if not self.root.is_dir() or backbone_parameters(self.root, backbone) is None:
            known = ", ".join(self.backbones()) or "(none)"
            raise TaskProblem(
                f"there is no backbone {backbone!r} in {self.root}, which has {known}. Name one of them: "
                "--backbone, or Backbone(..., name=...)"
            )
        if not (self.root / name).exists():
            return self._free_tag(name, backbone)
        own, entry = self.tasks().get(name, ("", None))
        if entry is None or entry.vfm is None:
            raise TaskProblem(
                f"{self.root / name} exists and is not a task. Save under another name, or move that directory away"
            )
        if own != backbone:
            raise TaskProblem(
                f"the task {name!r} in {self.root} is on the backbone {own!r}, this one on {backbone!r}. Save under "
                "another name, or remove that task first"
            )
        check_tag(self.root, self.names(), name, backbone, entry.vfm, holders)
        if isinstance(entry, TaskSpec) and entry.candidates and not held:
            (*_, last) = entry.candidates
            raise TaskProblem(
                f"version {last.number} of {name!r} is tried as its {last.role}, a new version would serve at once. "
                f"Hold it (--hold), or end that first: fmplex task promote {name}, or fmplex task rollback {name}"
            )
        return entry.vfm

    def _next_version(
        self, name: str, backbone: str, pipeline: Pipeline, tag: int, terms: Terms, *, held: bool
    ) -> Saved:
        check_limits(pipeline.config.family, [key for key in terms.given() if key != "cache"])
        number = max(self.versions(name), default=0) + 1
        if held:  # before the version is there
            _, spec = self.task(name)
            proto = self._proto(name)
            proto.version_policy.specific.versions[:] = [spec.version.number]
            put_terms(proto, terms)
            self._replace_config(name, proto)
        with self._staging() as staging:
            (staging / str(number)).mkdir()
            pipeline.write(staging / str(number))
            _readable(staging / str(number))
            (staging / str(number)).rename(self.root / name / str(number))
        if held:
            return Saved(name, self.root / name / str(number), number, tag)
        fresh = self._entry(name, backbone, pipeline, tag, terms)
        proto = merged(self._proto(name), fresh, terms)
        if proto != self._proto(name):
            self._replace_config(name, proto)
        return Saved(name, self.root / name / str(number), number, tag)

    def _entry(self, name: str, backbone: str, pipeline: Pipeline, vfm: int, terms: Terms) -> TaskEntry:
        decoder = pipeline.config.decoder
        spec = family(pipeline.config.family)
        shown = {each.name: each.client_name for each in spec.outputs}
        sizes = {shown[each]: size for each, size in pipeline.outputs.items() if size is not None}
        if pipeline.takes_size is not None:
            sizes[pipeline.takes] = pipeline.takes_size
        largest = read_config(self.root / backbone / CONFIG).max_batch_size
        return TaskEntry(
            name=name,
            backbone=backbone,
            vfm=vfm,
            family=pipeline.config.family,
            decoder=decoder.kind,
            max_batch_size=min(MAX_BATCH_SIZE, largest),
            **terms.given(),
            sizes=tuple(sizes.items()),
            labels=tuple(decoder.label_names),
            gives=tuple(pipeline.outputs),
            takes=pipeline.takes,
        )

    def _saved(self, path: Path, backbone: str, served: TaskSpec | None = None) -> Pipeline:
        """A saved version as its files describe it; what only a missing package could tell is as `served` has it.

        Raises TaskRefused where that is not known either.
        """
        config = load_task_config(path / "task.json")
        try:
            takes, size = config.encoder.reads().tensor.name, config.encoder.size()
        except TaskRefused:
            if served is None:
                raise
            takes, size = served.inputs[0], None
        try:
            outputs = config.decoder.sizes(path, self._hidden_width(backbone))
        except TaskRefused:
            if served is None:
                raise
            outputs = {name: dims[-1] if dims and dims[-1] >= 0 else None for name, dims in served.outputs.items()}
        return Pipeline(config, takes, size, outputs, _write_nothing)

    def _hidden_width(self, backbone: str) -> int | None:
        """The width of a backbone's vectors; None where its model is not on this machine."""
        file = self.root / backbone / CONFIG
        try:
            config = load_backbone_config(file, backbone_parameters(self.root, backbone) or {})
            return family(config.family).hidden_width(config, file)
        except BackboneRefused:
            return None

    def _free_tag(self, name: str, backbone: str) -> int:
        return free_tag(self.root, self.names(), name, backbone, self.slots(backbone))

    def _proto(self, name: str) -> Any:
        return read_config(self.root / name / CONFIG)

    def _replace_config(self, name: str, proto: Any) -> None:
        # One file and no directory around it: each change of a directory may wait for the file system's journal.
        descriptor, staging = tempfile.mkstemp(prefix=self._prefix, dir=self._staged_in)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text_format.MessageToString(proto))
            os.chmod(staging, 0o644)
            os.replace(staging, self.root / name / CONFIG)
        except BaseException:
            with suppress(OSError):  # what went wrong first is what is told
                os.unlink(staging)
            raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.names()
        try:
            with FileLock(self.root / LOCK, timeout=LOCK_S):
                self._remove_leftovers()
                yield
        except Timeout:
            raise RepositoryLocked(
                f"another process has held {self.root / LOCK} for {LOCK_S:.0f} s. Wait until it is done"
            ) from None

    @property
    def _prefix(self) -> str:
        """Of what is staged for this repository; others may lie beside it too."""
        return f".fmplex-staging-{self.root.resolve().name}-"

    @property
    def _staged_in(self) -> Path:
        """Beside the repository, where no server looks; in it, hidden, where nothing beside it can be renamed into it.

        That is so where it is a file system of its own, such as a container's volume, or its parent cannot be written.
        """
        root = self.root.resolve()
        return root if os.path.ismount(root) or not os.access(root.parent, os.W_OK | os.X_OK) else root.parent

    def _remove_leftovers(self) -> None:
        """Remove what writers staged that were killed: under the lock nobody else stages anything for it."""
        folder = self._staged_in
        staged = re.compile(re.escape(self._prefix) + r"[a-z0-9_]+")  # as `tempfile` names it
        with suppress(OSError):
            for name in filter(staged.fullmatch, os.listdir(folder)):
                with suppress(NotADirectoryError):
                    shutil.rmtree(folder / name)
                    continue
                os.unlink(folder / name)

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        """A temporary directory on the repository's file system, which no server scans."""
        folder = Path(tempfile.mkdtemp(prefix=self._prefix, dir=self._staged_in))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _check_name(name: str) -> None:
    wrong = not name or name.startswith(".") or any(not (each.isalnum() or each in "-_.") for each in name)
    if wrong:
        raise TaskProblem(
            f"{name!r} cannot name a task or a backbone. Use letters, digits, '-', '_' and '.', but no '.' at its "
            "beginning"
        )


def _check_cache(name: str, config: TaskConfig) -> None:
    """Raise TaskProblem where answers of a task's family cannot be kept."""
    if family(config.family).streams:
        raise TaskProblem(
            f"{name!r} is of the family {config.family!r}, whose answers are sampled and come in parts: they cannot be "
            "kept. Leave cache out"
        )


def _readable(directory: Path) -> None:
    """Let everybody read it: safetensors writes files for their owner alone, and a server may be another user."""
    directory.chmod(0o755)
    for file in directory.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)


def _write_nothing(path: Path) -> None:
    """Writes nothing: the version exists."""


def write_config(path: Path, config: TaskConfig) -> None:
    """Write a version's task.json, atomically."""
    document = config.model_dump(mode="json", exclude_none=True)
    text = json.dumps(document, indent=2, ensure_ascii=False)
    staging = path / f".task.json.{os.getpid()}"
    staging.write_text(f"{text}\n", encoding="utf-8")
    staging.replace(path / "task.json")
