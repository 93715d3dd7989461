"""A backbone's entry in the model repository, as a frozen dataclass, and Triton's protobuf text for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fmplex_backend import families
from fmplex_backend.errors import TaskProblem
from fmplex_backend.repository.parameters import BackboneConfig


@dataclass(frozen=True, slots=True)
class BackboneEntry:
    """What a backbone's config.pbtxt says; inputs, outputs and tags are added when it loads."""

    name: str
    parameters: BackboneConfig  # of its family
    max_batch_size: int = 32

    def to_proto(self) -> Any:
        """As Triton's ModelConfig message; parameters that are as by default are left out."""
        config = model_config_pb2.ModelConfig(name=self.name, backend="fmplex", max_batch_size=self.max_batch_size)
        config.instance_group.add(kind="KIND_AUTO", count=1)
        for key, value in self.parameters.model_dump(exclude_defaults=True).items():
            config.parameters[key].string_value = str(value)
        return config

    def to_pbtxt(self) -> str:
        """As the text of config.pbtxt."""
        return str(text_format.MessageToString(self.to_proto()))


def model_named(model: str) -> str:
    """The parameter `model` for what a user names: a directory from here, whole, since the server starts elsewhere.

    Raises TaskProblem for nothing.
    """
    if not model.removeprefix("package:"):
        raise TaskProblem(f"{model!r} names no model. Give a hub id, a directory, or package:<module>")
    path = Path(model)
    return str(path.resolve()) if path.is_dir() else model


def family_of(model: str, config: Mapping[str, Any]) -> str:
    """The family that takes a model, by its config.json; raises TaskProblem where none does, or several do."""
    found = [name for name in families.names() if families.family(name).takes_model(config)]
    if len(found) == 1:
        return found[0]
    kind = config.get("model_type", "of no type")
    if found:
        raise TaskProblem(f"{model} ({kind}) could be of the families {', '.join(found)}. Name one with --family")
    raise TaskProblem(
        f"{model} ({kind}) is a model of no family here, which has {', '.join(families.names())}. Choose another "
        "model, or name a family with --family if you know that it fits"
    )
