"""A task's entry in the model repository, as a frozen dataclass, and Triton's protobuf text for it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fmplex_backend.errors import TaskProblem
from fmplex_backend.families import family, input_named
from fmplex_backend.interface import USAGE, USAGE_DIMS, TensorSpec, tag_name
from fmplex_backend.repository.terms import COMMON, TERMS, term_text
from fmplex_backend.types import weight_problem


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """What a task's config.pbtxt says. `sizes` are the last dims of tensors whose spec leaves them open (SCORES: 2)."""

    name: str
    backbone: str
    vfm: int
    family: str
    decoder: str
    max_batch_size: int
    weight: float = 1.0
    slo_ms: float | None = None
    max_queue: int | None = None
    max_queue_bytes: int | None = None
    max_seconds: float | None = None
    max_running: int | None = None
    max_kv_share: float | None = None
    cache: bool = False
    sizes: tuple[tuple[str, int], ...] = ()
    labels: tuple[str, ...] = ()  # of SCORES, in their order: for clients
    gives: tuple[str, ...] = ()  # its outputs, where the decoder kind leaves them open; all of the kind's by default
    takes: str = ""  # its encoder's input; the family's first by default
    version: int | None = None  # the one to serve, where it is not the highest

    def __post_init__(self) -> None:
        if problem := weight_problem(self.weight):
            raise TaskProblem(f"the weight of {self.name!r} is {self.weight}, {problem}. Give one that is")
        check_limits(self.family, [key for key in TERMS if getattr(self, key) is not None])

    def input(self) -> TensorSpec:
        """The tensor its clients send."""
        found = input_named(self.takes) if self.takes else family(self.family).inputs[0]
        assert found is not None
        return found.tensor

    def outputs(self) -> tuple[TensorSpec, ...]:
        """The task's outputs, the usage receipt left out."""
        spec = family(self.family)
        kind = spec.decoder(self.decoder)
        every = (*kind.gives, *kind.may_give)
        chosen = [each for each in every if each.name in self.gives] if self.gives else kind.gives
        return (*chosen, *spec.common_outputs)

    def to_proto(self) -> Any:
        """As Triton's ModelConfig message."""
        config = model_config_pb2.ModelConfig(name=self.name, platform="ensemble", max_batch_size=self.max_batch_size)
        step = config.ensemble_scheduling.step.add(model_name=self.backbone, model_version=-1)
        given = self.input()
        config.input.add(name=given.name, data_type=given.data_type, dims=self._dims(given))
        step.input_map[given.name] = given.client_name
        for spec in family(self.family).optional_inputs:
            config.input.add(name=spec.name, data_type=spec.data_type, dims=spec.dims, optional=True)
            step.input_map[spec.name] = spec.client_name
        for spec in self.outputs():
            config.output.add(name=spec.client_name, data_type=spec.data_type, dims=self._dims(spec))
            step.output_map[spec.name] = spec.client_name
        config.output.add(name=USAGE, data_type="TYPE_INT64", dims=USAGE_DIMS)
        step.output_map[tag_name(self.vfm)] = USAGE
        if self.version is not None:
            config.version_policy.specific.versions.append(self.version)
        config.parameters["decoder"].string_value = self.decoder
        if self.labels:
            config.parameters["labels"].string_value = json.dumps(list(self.labels), ensure_ascii=False)
        for key in TERMS:
            if (value := getattr(self, key)) is not None:
                config.parameters[key].string_value = term_text(value)
        if self.cache:
            config.parameters["cache"].string_value = "true"
        return config

    def _dims(self, spec: TensorSpec) -> list[int]:
        *first, last = spec.dims
        return [*first, dict(self.sizes).get(spec.client_name, -1) if last == -1 else last]

    def to_pbtxt(self) -> str:
        """As the text of config.pbtxt."""
        return str(text_format.MessageToString(self.to_proto()))


def check_limits(family_name: str, terms: Collection[str]) -> None:
    """Raise TaskProblem where one of the terms means nothing to tasks of a family."""
    if odd := [key for key in terms if key not in (*COMMON, *family(family_name).limits)]:
        raise TaskProblem(f"{odd[0]} limits nothing in a task of the family {family_name!r}. Leave it out")
