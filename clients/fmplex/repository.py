"""The model repository, written: tasks come, change and go whole, so that no server ever meets half of one.

Everything is written beside the repository and renamed into it, under a lock, and config.pbtxt is the last to change.
Nothing here needs torch.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from google.protobuf import text_format

from fmplex.configs import CONFIG, Terms, backbone_parameters, merged, put_terms, read_config
from fmplex.errors import TaskProblem
from fmplex_backend.config import TaskConfig, load_task_config
from fmplex_backend.entries import TaskEntry
from fmplex_backend.interface import tag_of
from fmplex_backend.repository import BrokenTask, Repository, TaskSpec

LOCK = ".fmplex.lock"
LOCK_S = 60.0
MAX_BATCH_SIZE = 32
DEFAULT_SLOTS = 256


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A version to be saved: its task.json, what else clients are told, and how its files are written."""

    config: TaskConfig
    sizes: tuple[tuple[str, int], ...]  # the last dim of outputs that have a fixed one
    gives: tuple[str, ...]  # a plugin's outputs
    write: Callable[[Path], None]
    takes: str = "TEXT"


@dataclass(frozen=True, slots=True)
class Saved:
    """A task in a repository."""

    name: str
    path: Path  # of the version
    version: int
    vfm: int


class ModelRepository:
    """A directory of Triton models, as one that writes tasks sees it."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    # -- reading

    def backbones(self) -> list[str]:
        """Names of the backbones in it."""
        return [name for name in self._names() if backbone_parameters(self.root, name) is not None]

    def tasks(self) -> dict[str, tuple[str, TaskSpec | BrokenTask]]:
        """Every task by name, with its backbone's name."""
        return {
            name: (backbone, entry)
            for backbone in self.backbones()
            for name, entry in Repository(self.root, backbone).read().items()
        }

    def task(self, name: str) -> tuple[str, TaskSpec]:
        """A task that can be read; raises TaskProblem or TaskRefused."""
        found = self.tasks()
        if name not in found:
            known = ", ".join(sorted(found)) or "(none)"
            raise TaskProblem(f"there is no task {name!r} in {self.root}, which has {known}. Name one of them")
        backbone, entry = found[name]
        if isinstance(entry, BrokenTask):
            raise entry.error
        return backbone, entry

    def versions(self, name: str) -> list[int]:
        """Numbers of its version directories."""
        return sorted(int(each.name) for each in (self.root / name).iterdir() if each.name.isdigit() and each.is_dir())

    # -- writing

    def save(self, name: str, backbone: str, pipeline: Pipeline, terms: Terms) -> Saved:
        """A new task, or the next version of one; raises TaskProblem. The server sees all of it or nothing."""
        _check_name(name)
        terms.check()
        with self._locked():
            if backbone_parameters(self.root, backbone) is None:
                known = ", ".join(self.backbones()) or "(none)"
                raise TaskProblem(
                    f"there is no backbone {backbone!r} in {self.root}, which has {known}. Say which one the task is "
                    "for: Backbone(..., name=...)"
                )
            if (self.root / name).exists():
                return self._next_version(name, backbone, pipeline, terms)
            entry = self._entry(name, backbone, pipeline, self._free_tag(backbone), terms)
            with self._aside() as aside:
                (aside / name / "1").mkdir(parents=True)
                pipeline.write(aside / name / "1")
                (aside / name / CONFIG).write_text(entry.to_pbtxt(), encoding="utf-8")
                _readable(aside / name)
                (aside / name).rename(self.root / name)
            return Saved(name, self.root / name / "1", 1, entry.vfm)

    def set(self, name: str, terms: Terms) -> None:
        """Other terms for a task, in effect with the backbone's next batch."""
        terms.check()
        with self._locked():
            self.task(name)
            proto = self._proto(name)
            put_terms(proto, terms)
            self._replace_config(name, proto)

    def rollback(self, name: str) -> Saved:
        """Serve the version before the one that is served; raises TaskProblem where there is none."""
        with self._locked():
            backbone, spec = self.task(name)
            earlier = [number for number in self.versions(name) if number < spec.version.number]
            if not earlier:
                raise TaskProblem(f"{name!r} has no version before {spec.version.number} to go back to")
            path = self.root / name / str(earlier[-1])
            config = load_task_config(path / "task.json")
            sizes = (*_sizes_on_disk(config, path), *_features_on_disk(config))
            pipeline = Pipeline(config, sizes, _gives(spec, config), _nothing, _takes(spec, config))
            entry = replace(self._entry(name, backbone, pipeline, spec.vfm, Terms()), version=earlier[-1])
            self._replace_config(name, merged(self._proto(name), entry, Terms()))
            return Saved(name, path, earlier[-1], spec.vfm)

    def remove(self, name: str) -> None:
        """Take a task out, with all its versions."""
        with self._locked():
            tasks = self.tasks()
            if name not in tasks:
                raise TaskProblem(f"there is no task {name!r} in {self.root}. It has {', '.join(sorted(tasks))}")
            with self._aside() as aside:
                (self.root / name).rename(aside / name)

    # -- how

    def _names(self) -> list[str]:
        if not self.root.is_dir():
            raise TaskProblem(f"there is no model repository {self.root}. Name a directory of Triton models")
        return sorted(each.name for each in self.root.iterdir() if each.is_dir() and not each.name.startswith("."))

    def _next_version(self, name: str, backbone: str, pipeline: Pipeline, terms: Terms) -> Saved:
        own, entry = self.tasks().get(name, ("", None))
        if entry is None or entry.vfm is None:
            raise TaskProblem(
                f"{self.root / name} exists and is no task. Save under another name, or take that directory away"
            )
        if own != backbone:
            raise TaskProblem(
                f"the task {name!r} in {self.root} is on the backbone {own!r}, this one on {backbone!r}. Save under "
                "another name, or remove that task first"
            )
        number = max(self.versions(name), default=0) + 1
        with self._aside() as aside:
            (aside / str(number)).mkdir()
            pipeline.write(aside / str(number))
            _readable(aside / str(number))
            (aside / str(number)).rename(self.root / name / str(number))
        fresh = self._entry(name, backbone, pipeline, entry.vfm, terms)
        proto = merged(self._proto(name), fresh, terms)
        if proto != self._proto(name):
            self._replace_config(name, proto)
        return Saved(name, self.root / name / str(number), number, entry.vfm)

    def _entry(self, name: str, backbone: str, pipeline: Pipeline, vfm: int, terms: Terms) -> TaskEntry:
        decoder = pipeline.config.decoder
        largest = read_config(self.root / backbone / CONFIG).max_batch_size
        return TaskEntry(
            name=name,
            backbone=backbone,
            vfm=vfm,
            family=pipeline.config.family,
            decoder=decoder.kind,
            max_batch_size=min(MAX_BATCH_SIZE, largest),
            weight=1.0 if terms.weight is None else terms.weight,
            slo_ms=terms.slo_ms,
            max_queue=terms.max_queue,
            sizes=pipeline.sizes,
            labels=tuple(getattr(decoder, "labels", ())),
            gives=pipeline.gives,
            takes=pipeline.takes,
        )

    def _free_tag(self, backbone: str) -> int:
        used = {
            tag
            for name in self._names()
            for step in read_config(self.root / name / CONFIG).ensemble_scheduling.step
            if step.model_name == backbone
            for tag in map(tag_of, step.output_map)
            if tag is not None
        }
        slots = int((backbone_parameters(self.root, backbone) or {}).get("vfm_slots", DEFAULT_SLOTS))
        free = next((tag for tag in range(slots) if tag not in used), None)
        if free is None:
            raise TaskProblem(
                f"all {slots} tags of the backbone {backbone!r} are taken. Raise vfm_slots in "
                f"{self.root / backbone / CONFIG} (and load the backbone again), or remove a task"
            )
        return free

    def _proto(self, name: str) -> Any:
        return read_config(self.root / name / CONFIG)

    def _replace_config(self, name: str, proto: Any) -> None:
        with self._aside() as aside:
            file = aside / CONFIG
            file.write_text(text_format.MessageToString(proto), encoding="utf-8")
            file.chmod(0o644)
            file.replace(self.root / name / CONFIG)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._names()
        try:
            with FileLock(self.root / LOCK, timeout=LOCK_S):
                yield
        except Timeout:
            raise TaskProblem(
                f"another process has held {self.root / LOCK} for {LOCK_S:.0f} s. Wait until it is done"
            ) from None

    @contextmanager
    def _aside(self) -> Iterator[Path]:
        """A folder on the repository's file system that no server looks into."""
        folder = Path(tempfile.mkdtemp(prefix=".fmplex-", dir=self.root.resolve().parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _gives(spec: TaskSpec, config: TaskConfig) -> tuple[str, ...]:
    return tuple(name for name in spec.outputs if name != "TRUNCATED") if config.decoder.kind == "plugin" else ()


def _sizes_on_disk(config: TaskConfig, path: Path) -> tuple[tuple[str, int], ...]:
    """Sizes of a version's outputs, of its own files alone."""
    decoder = config.decoder
    labels = getattr(decoder, "labels", None)
    if labels:
        one = 1 if decoder.kind in ("classification", "similarity") else len(labels)
        return (
            (("SCORES", len(labels)),)
            if decoder.kind == "token-classification"
            else (
                ("SCORES", len(labels)),
                ("LABEL", one),
            )
        )
    return ()


def _features_on_disk(config: TaskConfig) -> tuple[tuple[str, int], ...]:
    return (("FEATURES", config.encoder.features),) if config.encoder.kind == "projection" else ()


def _takes(spec: TaskSpec, config: TaskConfig) -> str:
    """The input of a version: a plugin's is not in its files, and taken for that of the version that is served."""
    known = {"text": "TEXT", "projection": "FEATURES"}
    return known.get(config.encoder.kind) or spec.inputs[0]


def _check_name(name: str) -> None:
    wrong = not name or name.startswith(".") or any(not (each.isalnum() or each in "-_.") for each in name)
    if wrong:
        raise TaskProblem(f"{name!r} cannot name a task. Use letters, digits, '-', '_' and '.', not first")


def _readable(directory: Path) -> None:
    """safetensors writes for its owner alone; a server may be another user."""
    directory.chmod(0o755)
    for file in directory.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)


def _nothing(path: Path) -> None:
    """The version is there already."""


def write_config(path: Path, config: TaskConfig) -> None:
    """A version's task.json."""
    document = config.model_dump(mode="json", exclude_none=True)
    text = json.dumps(document, indent=2, ensure_ascii=False)
    aside = path / f".task.json.{os.getpid()}"
    aside.write_text(f"{text}\n", encoding="utf-8")
    aside.replace(path / "task.json")
