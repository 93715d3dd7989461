"""The model repository as a backbone reads it: which ensembles step into it, under which tag, on what terms.

The repository is the single truth: nothing here writes, and nothing is remembered that is not on disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fmplex_backend.errors import TaskRefused
from fmplex_backend.interface import tag_of

CONFIG = "config.pbtxt"

Signature = tuple[tuple[str, int, int], ...]  # (file, mtime_ns, bytes) of all that makes a task


@dataclass(frozen=True, slots=True)
class Version:
    """A version directory and what stands in it."""

    number: int
    path: Path
    signature: Signature

    def intact(self) -> bool:
        """Whether it still stands on disk as it was read."""
        return self.path.is_dir() and tuple(_signature(self.path)) == self.signature


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What a task's ensemble entry says about its vFM. Seconds, requests."""

    name: str
    vfm: int
    config: Path
    weight: float
    slo: float | None
    max_queue: int | None
    version: Version
    inputs: tuple[str, ...]  # the backbone's tensors that the entry fills
    outputs: Mapping[str, tuple[int, ...]]  # the backbone's tensor -> dims the entry promises for it


@dataclass(frozen=True, slots=True)
class BrokenTask:
    """An ensemble that steps into the backbone and cannot be served; `vfm` where at least the tag is known."""

    name: str
    vfm: int | None
    error: TaskRefused


Entry = TaskSpec | BrokenTask


class Repository:
    """The tasks of one backbone in a model repository."""

    def __init__(self, root: Path, backbone: str) -> None:
        self.root = root
        self.backbone = backbone
        self._parsed: dict[str, tuple[tuple[int, ...], Any]] = {}  # config.pbtxt by its status: parsing takes longest

    def names(self) -> list[str]:
        """Every directory that could be a model."""
        return sorted(entry.name for entry in self.root.iterdir() if entry.is_dir())

    def read(self, names: Iterable[str] | None = None) -> dict[str, Entry]:
        """The tasks among `names` (all by default) that step into this backbone."""
        found = ((name, self.read_task(name)) for name in (self.names() if names is None else names))
        return {name: entry for name, entry in found if entry is not None}

    def read_task(self, name: str) -> Entry | None:
        """One directory's entry; None where it is no task of this backbone."""
        file = self.root / name / CONFIG
        try:
            proto = self._parse(file)
            steps = [step for step in proto.ensemble_scheduling.step if step.model_name == self.backbone]
            return _entry(name, file, proto, steps) if steps else None
        except TaskRefused as error:
            return BrokenTask(name, None, error)
        except PermissionError as error:
            refused = TaskRefused(file, "(file)", f"it cannot be read: {error}", "Let the server's user read it")
            return BrokenTask(name, None, refused)
        except (FileNotFoundError, NotADirectoryError):
            return None  # not a model, or being removed

    def _parse(self, file: Path) -> Any:
        status = file.stat()
        version = (status.st_mtime_ns, status.st_size, status.st_ino)
        known = self._parsed.get(file.parent.name)
        if known is not None and known[0] == version:
            return known[1]
        text = file.read_text(encoding="utf-8", errors="replace")
        proto = model_config_pb2.ModelConfig()
        if self.backbone in text:  # spares parsing hundreds of entries of other backbones
            try:
                text_format.Parse(text, proto)
            except text_format.ParseError as error:
                raise TaskRefused(
                    file, "(whole file)", f"not a Triton model configuration: {error}", "Correct that line"
                ) from None
        self._parsed[file.parent.name] = (version, proto)
        return proto


def _entry(name: str, file: Path, proto: Any, steps: list[Any]) -> Entry:
    tags = [tag for step in steps for tag in map(tag_of, step.output_map) if tag is not None]
    try:
        if len(tags) != 1:
            raise TaskRefused(
                file,
                "ensemble_scheduling.step.output_map",
                f"{len(tags)} tags in its steps into {steps[0].model_name!r}, exactly one is needed",
                'Map one VFM_<n>, a number no other task has there, to an output "usage"',
            )
        parameters = {key: value.string_value for key, value in proto.parameters.items()}
        return TaskSpec(
            name=name,
            vfm=tags[0],
            config=file,
            weight=_number(file, parameters, "weight", default=1.0),
            slo=None if "slo_ms" not in parameters else _number(file, parameters, "slo_ms", 0.0) / 1000,
            max_queue=None if "max_queue" not in parameters else _whole(file, parameters, "max_queue"),
            version=_version(file, proto),
            inputs=tuple(steps[0].input_map),
            outputs=_promised(proto, steps[0]),
        )
    except TaskRefused as error:
        return BrokenTask(name, tags[0] if len(set(tags)) == 1 else None, error)


def _number(file: Path, parameters: Mapping[str, str], key: str, default: float) -> float:
    text = parameters.get(key)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise TaskRefused(file, f"parameters.{key}", f"{text!r} is not a number above 0", f'Say e.g. "{3}"')
    return value


def _whole(file: Path, parameters: Mapping[str, str], key: str) -> int:
    value = _number(file, parameters, key, 1.0)
    if value != int(value):
        raise TaskRefused(file, f"parameters.{key}", f"{parameters[key]!r} is not a whole number", "Round it")
    return int(value)


def _promised(proto: Any, step: Any) -> dict[str, tuple[int, ...]]:
    """Dims that the entry's own outputs promise, by the backbone's name for the tensor."""
    dims = {output.name: tuple(output.dims) for output in proto.output}
    return {wire: dims[shown] for wire, shown in step.output_map.items() if tag_of(wire) is None and shown in dims}


def _version(file: Path, proto: Any) -> Version:
    """The version that Triton serves under the entry's version policy, which must leave just one."""
    directory = file.parent
    policy = proto.version_policy.WhichOneof("policy_choice")
    wanted = list(proto.version_policy.specific.versions)
    several = policy == "all" or (policy == "latest" and proto.version_policy.latest.num_versions > 1)
    if several or len(wanted) > 1:
        raise TaskRefused(
            file,
            "version_policy",
            "it serves several versions, but a tag stands for one",
            "Leave it out (the highest number is served) or name one specific version",
        )
    numbers = [int(entry.name) for entry in directory.iterdir() if _is_number(entry.name) and entry.is_dir()]
    served = wanted or sorted(numbers)[-1:]
    if not served or served[0] not in numbers:
        missing = directory / str(served[0] if served else 1)
        raise TaskRefused(
            missing, "(directory)", "there is no such version directory", "Put task.json and weights there"
        )
    path = directory / str(served[0])
    return Version(served[0], path, tuple(_signature(path)))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()  # "²" is a digit too, and no number


def _signature(path: Path) -> Iterator[tuple[str, int, int]]:
    for file in sorted(path.rglob("*")):
        try:
            status = file.stat()
        except OSError:
            continue  # vanished while being read: the watcher comes back to it
        yield (str(file.relative_to(path)), status.st_mtime_ns, status.st_size)
