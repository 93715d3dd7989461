"""Whether a task can be served: the loader asks before it serves one, and `fmplex task check` without a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fmplex_backend.errors import TaskRefused
from fmplex_backend.repository.tasks import TaskSpec
from fmplex_backend.types import Extensions


def load_checked(load: Callable[[Path], Extensions], spec: TaskSpec) -> Extensions:
    """A task's version by a runtime's `load`, and its entry checked against it; raises TaskRefused."""
    extensions = load(spec.version.path)
    check_entry(spec, extensions)
    return extensions


def tag_refused(file: Path, tag: int, others: Sequence[str], *, slots: int, backbone: str) -> TaskRefused | None:
    """Why an entry's tag cannot be served; None where it can.

    Args:
        file: the entry's config.pbtxt.
        others: names of the tasks that have the tag in the repository too, and keep it.
        slots: tags from 0 to slots - 1 exist.
    """
    if not others and tag < slots:
        return None
    problem = (
        f"VFM_{tag} is the tag of {', '.join(map(repr, others))} in the repository too"
        if others
        else f"VFM_{tag} is beyond the backbone's vfm_slots of {slots}"
    )
    remedy = f"Give it a tag below {slots} that no other task on {backbone!r} has"
    return TaskRefused(file, "ensemble_scheduling.step.output_map", problem, remedy)


def check_entry(spec: TaskSpec, extensions: Extensions) -> None:
    """Raise TaskRefused where the entry does not map the encoder's input, or maps an output that is not made, or has
    answers kept that may differ the next time."""
    if spec.cache and not extensions.repeats:
        raise TaskRefused(
            spec.config,
            "parameters.cache",
            "it is 'true', but this task's answers are sampled, or come in parts: they cannot be kept",
            'Say "false", or leave it out',
        )
    if extensions.takes not in spec.inputs:
        raise TaskRefused(
            spec.config,
            "ensemble_scheduling.step.input_map",
            f"this task's encoder reads {extensions.takes}, the entry maps {', '.join(spec.inputs) or 'no input'}",
            f"Map {extensions.takes}",
        )
    outputs = extensions.outputs
    for tensor, dims in spec.outputs.items():
        if tensor not in outputs:
            raise TaskRefused(
                spec.config,
                f"ensemble_scheduling.step.output_map.{tensor}",
                f"this task's decoder does not make it, but {sorted(outputs)}",
                "Map one of those",
            )
        size = outputs[tensor]
        if size is not None and dims and dims[-1] not in (-1, size):
            raise TaskRefused(
                spec.config,
                f"output.{tensor}.dims",
                f"the last is {dims[-1]}, the decoder makes {size}",
                f"Say {size}, or -1",
            )
