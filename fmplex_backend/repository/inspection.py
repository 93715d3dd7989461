"""What a directory of the repository is, and what is wrong with it or missing in it, by its own files alone."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fmplex_backend.errors import Refused, TaskRefused
from fmplex_backend.files import native, read_text, refused
from fmplex_backend.interface import tag_of
from fmplex_backend.repository.binding import AUTO
from fmplex_backend.repository.config import load_backbone_config, load_task_config
from fmplex_backend.repository.groups import GroupSpec, is_group
from fmplex_backend.repository.loadable import check_loadable
from fmplex_backend.repository.names import check_name
from fmplex_backend.repository.tasks import CONFIG, Age, BrokenTask, Repository
from fmplex_backend.repository.versions import version_numbers

# Parts of a task's entry that are written for it: all of it, its name, the backbone, the tag.
Lack = Literal["config", "name", "backbone", "tag"]


@dataclass(frozen=True, slots=True)
class Inspected:
    """A directory by its own files; whether its backbone is there and its tag is free, others tell."""

    kind: Literal["task", "backbone", "model"]  # a group counts as a task
    backbone: str = ""  # of a task
    tag: int | None = None  # of a task
    slots: int = 0  # of a backbone: tags from 0 to slots - 1 exist
    steps: tuple[str, ...] = ()  # of another ensemble: the models that it leads through
    lack: Lack | None = None
    problem: str = ""  # file, field, what is wrong, and the remedy
    age: Age = (0, 0, "")  # of two tasks with one tag the older one, by this, has it


def inspect(root: Path, name: str) -> Inspected:
    """Read a directory of the repository `root`; raises OSError where that may pass."""
    directory = root / name
    try:
        check_name(root, name)
        check_loadable(directory)
        proto = _config(directory / CONFIG)
    except Refused as error:
        return Inspected("model", problem=str(error))
    if proto is None:
        version = _described_version(directory)
        return Inspected("model") if version is None else _task_without_config(version)
    if proto.backend == "fmplex":
        return _backbone(name, directory / CONFIG, proto)
    steps = proto.ensemble_scheduling.step
    tagged = [step for step in steps if any(tag_of(output) is not None for output in step.output_map)]
    is_ours = is_group(proto) or (steps and steps[0].model_name == AUTO) or _described_version(directory) is not None
    if tagged or (steps and is_ours):
        return _task(root, name, proto, (tagged or steps)[0])
    return Inspected("model", steps=tuple(sorted({step.model_name for step in steps})))


def _config(file: Path) -> Any:
    """The ModelConfig; None without one. A server newer than this protocol may know more fields."""
    proto = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(read_text(file), proto, allow_unknown_field=True)
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise TaskRefused(file, "(whole file)", f"it is not UTF-8: {error}", "Write it again") from None
    except OSError as error:
        raise refused(file, error, missing="Write it again") from None
    except (text_format.ParseError, RecursionError) as error:
        problem = f"not a Triton model configuration: {error}"
        raise TaskRefused(file, "(whole file)", problem, "Correct that line") from None
    return proto


def _described_version(directory: Path) -> Path | None:
    """The highest version, where it has a task.json."""
    numbers = version_numbers(directory)
    version = directory / str(numbers[-1]) if numbers else None
    return version if version is not None and (version / "task.json").exists() else None


def _task_without_config(version: Path) -> Inspected:
    return Inspected("task", lack="config", problem=_problem_of(version))


def _problem_of(version: Path) -> str:
    try:
        load_task_config(version / "task.json")
    except Refused as error:
        return str(error)
    return ""


def _backbone(name: str, file: Path, proto: Any) -> Inspected:
    parameters = {key: value.string_value for key, value in proto.parameters.items()}
    try:
        if proto.name and native(proto.name) != name:
            problem = f"it is {proto.name!r}, and Triton loads nothing whose name is not its directory's"
            raise TaskRefused(file, "name", problem, f'Write name: "{name}", or rename the directory')
        return Inspected("backbone", slots=load_backbone_config(file, parameters).vfm_slots)
    except Refused as error:
        return Inspected("backbone", problem=str(error))


def _task(root: Path, name: str, proto: Any, step: Any) -> Inspected:
    tags = [tag for output in step.output_map if (tag := tag_of(output)) is not None]
    repository = Repository(root, step.model_name)
    lack: Lack | None = None
    if step.model_name == AUTO and not (root / AUTO).is_dir():
        lack = "backbone"
    elif proto.name and native(proto.name) != name:
        lack = "name"
    elif not tags:
        lack = "tag"
    if lack is not None:
        version = _described_version(root / name)
        return Inspected("task", step.model_name, lack=lack, problem=_problem_of(version) if version else "")
    entry = repository.read_task(name)
    if entry is None:  # it did a moment ago
        raise OSError(errno.ESTALE, f"{root / name / CONFIG} is being written")
    if isinstance(entry, BrokenTask):
        problem = str(entry.error)
    else:
        problem = "" if isinstance(entry, GroupSpec) else _problem_of(entry.version.path)
    return Inspected("task", step.model_name, entry.vfm, problem=problem, age=repository.age(name))
