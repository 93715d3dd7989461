"""The model repository as a backbone reads it: which ensembles step into it, under which tag, on what terms.

The repository is the single truth: nothing here writes, and nothing is remembered that is not on disk.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fmplex_backend.errors import TaskRefused
from fmplex_backend.files import native, read_text, refused
from fmplex_backend.interface import tag_of
from fmplex_backend.repository import terms
from fmplex_backend.repository.candidates import CandidateSpec, candidates_in
from fmplex_backend.repository.configs import may_hide_tags, tags_written
from fmplex_backend.repository.groups import GROUP, GroupSpec, group_in
from fmplex_backend.repository.names import check_name
from fmplex_backend.repository.versions import PASSING, Version, files_below, is_directory, served_version

CONFIG = "config.pbtxt"

Age = tuple[int, int, str]  # (times of modification and of change in ns, name)
Stamp = tuple[int, int, int]  # (mtime_ns, size in bytes, inode) of a file: another one means that it was written


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What a task's ensemble entry says about its vFM. `slo` is in seconds, `max_queue` in requests.

    Limits that it does not say are None.
    """

    name: str
    vfm: int
    config: Path
    weight: float
    slo: float | None
    max_queue: int | None
    version: Version
    inputs: tuple[str, ...]  # the backbone's tensors that the entry fills
    outputs: Mapping[str, tuple[int, ...]]  # the backbone's tensor -> dims the entry declares for it
    max_queue_bytes: int | None = None
    max_seconds: float | None = None
    max_running: int | None = None
    max_kv_share: float | None = None
    cache: bool = False  # whether its answers are kept
    candidates: tuple[CandidateSpec, ...] = ()  # that are tried beside the version
    ahead_s: float = field(default=0.0, compare=False)  # that its account begins with, see `terms.ahead_s`

    @property
    def slo_ms(self) -> float | None:
        """The objective as the entry says it."""
        return None if self.slo is None else self.slo * 1000


@dataclass(frozen=True, slots=True)
class BrokenTask:
    """An ensemble that steps into the backbone and cannot be served; `vfm` where at least the tag is known."""

    name: str
    vfm: int | None
    error: TaskRefused


ReadTask = TaskSpec | BrokenTask
Entry = ReadTask | GroupSpec


class Repository:
    """The tasks of one backbone in a model repository."""

    def __init__(self, root: Path, backbone: str) -> None:
        self.root = root
        self.backbone = backbone
        self._parsed: dict[str, tuple[Stamp, Any]] = {}  # by task: config.pbtxt as it was parsed

    def names(self) -> list[str]:
        """Every directory that could be a model; hidden ones belong to editors and version control."""
        return sorted(name for name in os.listdir(self.root) if not is_hidden(name) and is_directory(self.root / name))

    def has(self, name: str) -> bool:
        """Whether `names` has it: a name that a client gives may be a path that leads out of the repository."""
        is_plain = bool(name) and not is_hidden(name) and name == os.path.basename(name) and "\0" not in name
        return is_plain and is_directory(self.root / name)

    def read(self, names: Iterable[str] | None = None, former: Mapping[str, Entry] | None = None) -> dict[str, Entry]:
        """The tasks and groups among `names` (all by default) that step into this backbone.

        Args:
            former: by name, the entries read before: one whose file system is away for a moment stays as it was.
        """
        looked = self.names() if names is None else list(names)
        if names is None:
            self._parsed = {name: known for name, known in self._parsed.items() if name in set(looked)}
        found: dict[str, Entry | None] = {}
        for name in looked:
            try:
                found[name] = self.read_task(name)
            except OSError as error:
                found[name] = (former or {}).get(name) or _unreadable(name, self.root / name / CONFIG, error)
        return {name: entry for name, entry in found.items() if entry is not None}

    def read_task(self, name: str) -> Entry | None:
        """One directory's entry; None where it is none of this backbone. Raises OSError where that may pass."""
        if is_hidden(name):
            return None
        file = self.root / name / CONFIG
        try:
            proto = self._parse(file)
            steps = self._steps(proto)
            return _entry(name, file, proto, steps) if steps else None
        except TaskRefused as error:
            return BrokenTask(name, None, error.without_traceback())
        except (FileNotFoundError, NotADirectoryError):
            self._parsed.pop(name, None)
            return None  # not a model, or being removed
        except OSError as error:
            if error.errno in PASSING:
                raise
            return _unreadable(name, file, error)
        except Exception as error:  # a name or a file that nobody has thought of must not stop the others
            problem = f"reading it raised {type(error).__name__}: {error}"
            return BrokenTask(name, None, TaskRefused(file, "(whole file)", problem, "Correct it, or move it away"))

    def entry_of(self, name: str, proto: Any) -> Entry | None:
        """The same of an entry that was parsed by now."""
        steps = self._steps(proto)
        return _entry(name, self.root / name / CONFIG, proto, steps) if steps else None

    def tag(self, name: str) -> int | None:
        """The tag in a directory's entry as it is now; None where it has none here. Raises OSError.

        It costs a `stat` for an entry that was parsed before: cheap enough to be asked when a request arrives.
        """
        try:
            proto = self._parse(self.root / name / CONFIG)
        except TaskRefused:
            return None
        tags = _tags(self._steps(proto)) if _names_its_directory(proto, name) else []
        return tags[0] if len(tags) == 1 else None

    def tags_it_may_have(self, name: str) -> Collection[int]:
        """The tag in a directory's entry as it is now, perhaps among others. Raises OSError.

        Parsing takes most entries twenty times as long, and is spared where no tag can be hidden from a plain search.
        """
        text = read_text(self.root / name / CONFIG, errors="replace")
        if not may_hide_tags(text):
            return tags_written(text)
        self.forget(name)  # two changes within one tick of the file system's clock look like one
        tag = self.tag(name)
        return () if tag is None else (tag,)

    def forget(self, name: str) -> None:
        """Parse a directory's entry anew when it is read next, even if it looks unchanged."""
        self._parsed.pop(name, None)

    def oldest(self, names: Iterable[str]) -> str:
        """Of several tasks with one tag the one that keeps it, unless the server serves another.

        That is the task with the oldest file, which no change of terms touches: a copy comes after its original.
        `cp -p` keeps the times of modification, and no copy those of change.
        """
        return min(names, key=self.age)

    def age(self, name: str) -> Age:
        """What `oldest` goes by: less for an older one."""
        times = []
        for file in files_below(self.root / name):
            with contextlib.suppress(OSError):  # removed while being read
                status = file.stat()
                times.append((status.st_mtime_ns, status.st_ctime_ns))
        modified, changed = ([time[place] for time in times] for place in (0, 1))
        return min(modified, default=0), min(changed, default=0), name

    def _steps(self, proto: Any) -> list[Any]:
        return [step for step in proto.ensemble_scheduling.step if step.model_name == self.backbone]

    def _parse(self, file: Path) -> Any:
        version = stamp(file)
        known = self._parsed.get(file.parent.name)
        if known is not None and known[0] == version:
            return known[1]
        text = read_text(file, errors="replace")
        proto = model_config_pb2.ModelConfig()
        # Spares parsing hundreds of entries of other backbones. A name that is not ASCII may be written escaped.
        if self.backbone in text or not self.backbone.isascii():
            try:
                text_format.Parse(text, proto)
            except (text_format.ParseError, RecursionError) as error:
                raise TaskRefused(
                    file, "(whole file)", f"not a Triton model configuration: {error}", "Correct that line"
                ) from None
        self._parsed[file.parent.name] = (version, proto)
        return proto


def is_hidden(name: str) -> bool:
    """Whether a directory is none of the models, by its name."""
    return name.startswith(".")


def stamp(file: Path | str) -> Stamp:
    """What tells whether a file has been written since; raises OSError."""
    status = os.stat(file)
    return status.st_mtime_ns, status.st_size, status.st_ino


def _tags(steps: list[Any]) -> list[int]:
    return [tag for step in steps for tag in map(tag_of, step.output_map) if tag is not None]


def _names_its_directory(proto: Any, name: str) -> bool:
    return proto.name in ("", name) or native(proto.name) == name


def _entry(name: str, file: Path, proto: Any, steps: list[Any]) -> Entry:
    if not _names_its_directory(proto, name):  # it takes no tag: no request can come by an entry that is never loaded
        refused = TaskRefused(
            file,
            "name",
            f"it is {proto.name!r}, and Triton loads nothing whose name is not its directory's",
            f'Write name: "{name}" and give it a tag of its own, or move a copy out of the repository',
        )
        return BrokenTask(name, None, refused)
    try:
        check_name(file.parent.parent, name)
    except TaskRefused as error:  # nor does one whose name no client can send
        return BrokenTask(name, None, error.without_traceback())
    tags = _tags(steps)
    try:
        if len(tags) != 1:
            raise TaskRefused(
                file,
                "ensemble_scheduling.step.output_map",
                f"{len(tags)} tags in its steps into {steps[0].model_name!r}, exactly one is needed",
                'Map one VFM_<n>, a number no other task has there, to an output "usage"',
            )
        parameters = {key: value.string_value for key, value in proto.parameters.items()}
        if GROUP in parameters:
            return group_in(file, proto, steps, tags[0], parameters)
        version = served_version(file, proto)
        return TaskSpec(
            name=name,
            vfm=tags[0],
            config=file,
            weight=terms.weight(file, parameters),
            slo=terms.slo(file, parameters),
            max_queue=terms.whole(file, parameters, "max_queue"),
            max_queue_bytes=terms.whole(file, parameters, "max_queue_bytes"),
            max_seconds=terms.optional(file, parameters, "max_seconds"),
            max_running=terms.whole(file, parameters, "max_running"),
            max_kv_share=terms.part(file, parameters, "max_kv_share"),
            cache=terms.flag(file, parameters, "cache"),
            ahead_s=terms.ahead_s(parameters, time.time()),
            version=version,
            inputs=tuple(steps[0].input_map),
            outputs=_declared_dims(proto, steps[0]),
            candidates=candidates_in(file, parameters, version.number),
        )
    except TaskRefused as error:
        return BrokenTask(name, tags[0] if len(set(tags)) == 1 else None, error.without_traceback())


def _unreadable(name: str, file: Path, error: OSError) -> BrokenTask:
    return BrokenTask(name, None, refused(file, error, missing="Write it again"))


def _declared_dims(proto: Any, step: Any) -> dict[str, tuple[int, ...]]:
    """Dims that the entry declares for its outputs, by the backbone's name for the tensor."""
    dims = {output.name: tuple(output.dims) for output in proto.output}
    return {wire: dims[shown] for wire, shown in step.output_map.items() if tag_of(wire) is None and shown in dims}
