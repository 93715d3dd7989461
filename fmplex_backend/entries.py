"""A task's entry in the model repository, as a frozen dataclass, and Triton's protobuf text for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fmplex_backend.interface import (
    DECODER_OUTPUTS,
    FAMILY_INPUTS,
    FAMILY_OUTPUTS,
    TRUNCATED,
    USAGE_DIMS,
    TensorSpec,
    tag_name,
)


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """What a task's config.pbtxt says. `sizes` gives the last dim of a variable tensor (SCORES: 2)."""

    name: str
    backbone: str
    vfm: int
    family: str
    decoder: str
    max_batch_size: int
    weight: float = 1.0
    slo_ms: float | None = None
    max_queue: int | None = None
    sizes: tuple[tuple[str, int], ...] = ()
    labels: tuple[str, ...] = ()  # of SCORES, in their order: for clients
    gives: tuple[str, ...] = ()  # a plugin's outputs
    takes: str = "TEXT"  # its encoder's input
    version: int | None = None  # the one to serve, where it is not the highest

    def outputs(self) -> tuple[TensorSpec, ...]:
        """The task's outputs, the usage receipt left out."""
        if self.decoder == "plugin":
            known = {spec.name: spec for spec in FAMILY_OUTPUTS[self.family]}
            return (*(known[name] for name in self.gives), TRUNCATED)
        return (*DECODER_OUTPUTS[self.decoder], TRUNCATED)

    def to_proto(self) -> Any:
        """As Triton's ModelConfig message."""
        config = model_config_pb2.ModelConfig(name=self.name, platform="ensemble", max_batch_size=self.max_batch_size)
        step = config.ensemble_scheduling.step.add(model_name=self.backbone, model_version=-1)
        for spec in FAMILY_INPUTS[self.family]:
            if spec.name == self.takes:
                config.input.add(name=spec.name, data_type=spec.data_type, dims=self._dims(spec))
                step.input_map[spec.name] = spec.client_name
        for spec in self.outputs():
            config.output.add(name=spec.client_name, data_type=spec.data_type, dims=self._dims(spec))
            step.output_map[spec.name] = spec.client_name
        config.output.add(name="usage", data_type="TYPE_INT64", dims=USAGE_DIMS)
        step.output_map[tag_name(self.vfm)] = "usage"
        if self.version is not None:
            config.version_policy.specific.versions.append(self.version)
        config.parameters["decoder"].string_value = self.decoder
        if self.labels:
            config.parameters["labels"].string_value = json.dumps(list(self.labels), ensure_ascii=False)
        parameters = {"weight": self.weight, "slo_ms": self.slo_ms, "max_queue": self.max_queue}
        for key, value in parameters.items():
            if value is not None:
                config.parameters[key].string_value = _plain(value)
        return config

    def _dims(self, spec: TensorSpec) -> list[int]:
        *first, last = spec.dims
        return [*first, dict(self.sizes).get(spec.client_name, -1) if last == -1 else last]

    def to_pbtxt(self) -> str:
        """As the text of config.pbtxt."""
        return str(text_format.MessageToString(self.to_proto()))


def _plain(value: float) -> str:
    """As short as a person would write it, and not rounded: 3, 0.25, 1234567."""
    return str(int(value)) if value == int(value) else repr(value)
