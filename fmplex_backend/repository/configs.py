"""config.pbtxt of tasks and backbones: read, and merged with what FMplex writes there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fmplex_backend.errors import TaskProblem
from fmplex_backend.files import read_text
from fmplex_backend.interface import backbone_asked, tag_of
from fmplex_backend.repository.entry import TaskEntry
from fmplex_backend.repository.terms import TERMS, term_text
from fmplex_backend.types import weight_problem

CONFIG = "config.pbtxt"

# Octal, hexadecimal and Unicode escapes of protobuf's text format, and strings that it joins, with comments between.
_HIDING = re.compile(r"""\\[0-7xXuU]|["'](?:\s|#.*\n)*["']""")


@dataclass(frozen=True, slots=True)
class Terms:
    """A task's weight, latency objective, limits, and whether its answers are kept.

    None keeps what is there, or is the default of a new task. `cleared` names those that an existing task loses: it
    then has no objective, or its backbone's limit.
    """

    weight: float | None = None
    slo_ms: float | None = None
    max_queue: int | None = None
    max_queue_bytes: int | None = None
    max_seconds: float | None = None
    max_running: int | None = None
    max_kv_share: float | None = None
    cleared: frozenset[str] = frozenset()  # of all but the weight
    cache: bool | None = None

    def given(self) -> dict[str, Any]:
        """Those that are not None, by name: arguments of `Task`."""
        values = {name: getattr(self, name) for name in (*TERMS, "cache")}
        return {name: value for name, value in values.items() if value is not None}

    def check(self) -> None:
        """Raise TaskProblem where one is out of range."""
        if self.weight is not None and (problem := weight_problem(self.weight)):
            raise TaskProblem(f"weight is {self.weight}, {problem}. Give one that is")
        for name, value in self.given().items():
            if name != "cache" and not (0 < value < float("inf")):
                raise TaskProblem(f"{name} is {value:g}. It must be a number above 0")
        if (self.max_kv_share or 0) > 1:
            raise TaskProblem(f"max_kv_share is {self.max_kv_share:g}. It is a part: give one of 1 at most")


def backbone_parameters(root: Path, name: str) -> dict[str, str] | None:
    """Parameters of a backbone in a repository; None where there is none of that name."""
    if not name or "/" in name or ":" in name:
        return None
    proto = read_config(root / name / CONFIG)
    if proto.backend != "fmplex":
        return None
    return {key: value.string_value for key, value in proto.parameters.items()}


def is_backbone(root: Path, name: str) -> bool:
    """Whether it can be read as one: an entry that cannot is no reason to do nothing with the others."""
    try:
        return backbone_parameters(root, name) is not None
    except TaskProblem:
        return False


def tags_of(file: Path, backbone: str) -> list[int]:
    """Tags that an entry has on a backbone; every tag that is written there, where it cannot be parsed."""
    try:
        return tags_in(read_config(file), backbone)
    except TaskProblem:
        return _tags_written(file)


def tags_in(proto: Any, backbone: str) -> list[int]:
    """Tags that an entry, a ModelConfig message, has on a backbone."""
    steps = [step for step in proto.ensemble_scheduling.step if step.model_name == backbone]
    return [tag for step in steps for tag in map(tag_of, step.output_map) if tag is not None]


def _tags_written(file: Path) -> list[int]:
    try:
        return tags_written(read_text(file, errors="replace"))
    except OSError:
        return []


def tags_written(text: str) -> list[int]:
    """Every tag that stands as a word in the text of an entry, also in a comment."""
    return [tag for tag in map(tag_of, re.findall(r"\w+", text)) if tag is not None]


def may_hide_tags(text: str) -> bool:
    """Whether the text of an entry may have tags that are no words in it: escaped, or cut into several strings."""
    return _HIDING.search(text) is not None


def read_config(file: Path) -> Any:
    """The file as a ModelConfig message, an empty one where there is no file; raises TaskProblem."""
    proto = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(read_text(file), proto)
    except (FileNotFoundError, NotADirectoryError):
        return proto
    except OSError as error:
        raise TaskProblem(f"{file} cannot be read: {error.strerror}. Put a regular file there") from None
    except UnicodeDecodeError as error:
        raise TaskProblem(f"{file} is not UTF-8: {error}. Write it again") from None
    except (text_format.ParseError, RecursionError) as error:
        raise TaskProblem(f"{file} is not a Triton model configuration: {error}. Correct that line") from None
    return proto


def merged(old: Any, entry: TaskEntry, terms: Terms) -> Any:
    """`entry` with the parameters of `old` (its terms, and whatever a person added), then changed by `terms`."""
    new = entry.to_proto()
    for key, value in old.parameters.items():
        if key not in ("decoder", "labels"):
            new.parameters[key].CopyFrom(value)
    new.max_batch_size = old.max_batch_size or new.max_batch_size
    put_terms(new, terms)
    return new


def put_terms(proto: Any, terms: Terms) -> None:
    """Write those terms that are not None into a ModelConfig message, and take out those that are cleared."""
    for key, value in terms.given().items():
        proto.parameters[key].string_value = term_text(value)
    for key in terms.cleared:
        proto.parameters.pop(key, None)


def backbone_stepped_into(proto: Any) -> str:
    """The backbone of a task's configuration, whether it exists or not; "" where it is no task's."""
    return backbone_asked((step.model_name, step.output_map) for step in proto.ensemble_scheduling.step)
