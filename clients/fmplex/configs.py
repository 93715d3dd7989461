"""config.pbtxt of tasks and backbones: read, and changed in the places that are ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fmplex.errors import TaskProblem
from fmplex_backend.entries import TaskEntry

CONFIG = "config.pbtxt"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a task is entitled to. None: as it is, or the default of a new task."""

    weight: float | None = None
    slo_ms: float | None = None
    max_queue: int | None = None

    def check(self) -> None:
        """Raise TaskProblem where one is out of range."""
        for name, value in (("weight", self.weight), ("slo_ms", self.slo_ms), ("max_queue", self.max_queue)):
            if value is not None and not (0 < value < float("inf")):
                raise TaskProblem(f"{name} is {value}; it must be a number above 0")


def backbone_parameters(root: Path, name: str) -> dict[str, str] | None:
    """Parameters of a backbone in a repository; None where there is none of that name."""
    file = root / name / CONFIG
    if not name or "/" in name or ":" in name or not file.is_file():
        return None
    proto = read_config(file)
    if proto.backend != "fmplex":
        return None
    return {key: value.string_value for key, value in proto.parameters.items()}


def read_config(file: Path) -> Any:
    proto = model_config_pb2.ModelConfig()
    if file.is_file():
        try:
            text_format.Parse(file.read_text(encoding="utf-8"), proto)
        except text_format.ParseError as error:
            raise TaskProblem(f"{file} is no Triton model configuration: {error}. Correct that line") from None
    return proto


def merged(old: Any, entry: TaskEntry, terms: Terms) -> Any:
    """The entry's interface and binding; terms, and whatever else a person wrote there, as they were."""
    new = entry.to_proto()
    for key, value in old.parameters.items():
        if key not in ("decoder", "labels"):
            new.parameters[key].CopyFrom(value)
    new.max_batch_size = old.max_batch_size or new.max_batch_size
    put_terms(new, terms)
    return new


def put_terms(proto: Any, terms: Terms) -> None:
    for key, value in (("weight", terms.weight), ("slo_ms", terms.slo_ms), ("max_queue", terms.max_queue)):
        if value is not None:
            proto.parameters[key].string_value = f"{value:g}" if value < 1e6 else str(value)
