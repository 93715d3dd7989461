"""What a task's entry says to clients, held against what its version's files can do."""

from __future__ import annotations

from typing import Any

from fmplex_backend.errors import TaskRefused
from fmplex_backend.repository import TaskSpec


def check_entry(spec: TaskSpec, extensions: Any) -> None:
    """Raise TaskRefused where the entry takes what the encoder does not, or gives what the decoder does not."""
    if extensions.takes not in spec.inputs:
        raise TaskRefused(
            spec.config,
            "ensemble_scheduling.step.input_map",
            f"this task's encoder reads {extensions.takes}, the entry has {', '.join(spec.inputs) or 'no input'}",
            f"Map {extensions.takes}",
        )
    sizes = extensions.decoder.sizes()
    gives = {*extensions.decoder.gives, "TRUNCATED"}
    for tensor, dims in spec.outputs.items():
        field = f"ensemble_scheduling.step.output_map.{tensor}"
        if tensor not in gives:
            raise TaskRefused(
                spec.config,
                field,
                f"this task's decoder does not make it, but {sorted(gives)}",
                "Map one of those",
            )
        if tensor in sizes and dims and dims[-1] not in (-1, sizes[tensor]):
            raise TaskRefused(
                spec.config,
                f"output.{tensor}.dims",
                f"the last is {dims[-1]}, the decoder makes {sizes[tensor]}",
                f"Say {sizes[tensor]}, or -1",
            )
