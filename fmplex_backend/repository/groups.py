"""A group's entry: an ensemble with one step, which asks a backbone for the answers of several tasks to one input.

It steps into the backbone with a tag of its own, which says that the request is this group's, and with an output
MEMBER_<n> for the tag of each of its tasks: a request shows itself by which tags it is to be answered, whatever has
become of the entry on disk since the server loaded it. The tasks' outputs are numbered in the order of these tags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2

from fmplex_backend.errors import TaskRefused
from fmplex_backend.interface import ERRORS, USAGE, TensorSpec, member_of, position_name, position_of, tag_of
from fmplex_backend.repository import terms

GROUP = "group"  # the parameter that names the tasks, with commas between
STEP = "ensemble_scheduling.step"


@dataclass(frozen=True, slots=True)
class Member:
    """A task of a group: its name, the tag by which it is asked, and its outputs that the group shows."""

    name: str
    tag: int
    outputs: tuple[TensorSpec, ...] = ()  # as the backbone names them, with the dims that the entry declares


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """What a group's entry says. `slo` is in seconds; the members are in the order in which the entry names them."""

    name: str
    vfm: int
    config: Path
    slo: float | None
    inputs: tuple[str, ...]  # the backbone's tensors that the entry fills
    members: tuple[Member, ...]

    @property
    def by_tag(self) -> list[Member]:
        """The members by their positions in the outputs' names."""
        return sorted(self.members, key=lambda member: member.tag)


def is_group(proto: Any) -> bool:
    """Whether an entry, a ModelConfig message, is a group's."""
    return GROUP in proto.parameters


def rewrite(name: str, members: Sequence[str], root: Path) -> str:
    """How a group's entry is written anew."""
    return f"fmplex group create {name} {' '.join(members)} --replace --repository {root}"


def group_in(file: Path, proto: Any, steps: list[Any], tag: int, parameters: Mapping[str, str]) -> GroupSpec:
    """Of an entry, a ModelConfig message, whose steps into the backbone have this tag; raises TaskRefused."""
    names = tuple(name.strip() for name in parameters[GROUP].split(","))
    if "" in names or len(set(names)) < len(names):
        problem = f"{parameters[GROUP]!r} is no list of different tasks"
        raise TaskRefused(file, f"parameters.{GROUP}", problem, 'Write e.g. "sentiment,topic"')
    if len(proto.ensemble_scheduling.step) > 1:
        problem = f"{len(proto.ensemble_scheduling.step)} steps, a group has one"
        raise TaskRefused(file, STEP, problem, _remedy(file, names))
    tags = _tags(file, names, steps[0])
    return GroupSpec(
        name=file.parent.name,
        vfm=tag,
        config=file,
        slo=terms.slo(file, parameters),
        inputs=tuple(sorted(steps[0].input_map)),
        members=_members(file, proto, steps[0], names, tags),
    )


def _remedy(file: Path, names: Sequence[str]) -> str:
    return f"Write it anew: {rewrite(file.parent.name, names, file.parent.parent)}"


def _tags(file: Path, names: Sequence[str], step: Any) -> dict[str, int]:
    """The tag of each member, by which the entry shows its receipt; raises TaskRefused."""
    shown = {output: member for output, text in step.output_map.items() if (member := member_of(output)) is not None}
    by_shown = {step.output_map[output]: tag for output, tag in shown.items()}
    if set(by_shown) != {f"{name}.{USAGE}" for name in names} or len(set(shown.values())) < len(names):
        problem = (
            f"it has to map a MEMBER_<n> to each of {', '.join(f'{name}.{USAGE}' for name in names)}, and no other"
        )
        raise TaskRefused(file, f"{STEP}.output_map", problem, _remedy(file, names))
    if ERRORS.name not in step.output_map:
        problem = f"{ERRORS.name} is missing, so that nothing would tell which tasks have failed"
        raise TaskRefused(file, f"{STEP}.output_map", problem, f'Map it to "{ERRORS.client_name}"')
    return {name: by_shown[f"{name}.{USAGE}"] for name in names}


def _members(file: Path, proto: Any, step: Any, names: Sequence[str], tags: Mapping[str, int]) -> tuple[Member, ...]:
    ordered = sorted(names, key=tags.__getitem__)
    declared = {output.name: output for output in proto.output}
    outputs: dict[str, list[TensorSpec]] = {name: [] for name in names}
    for wire, shown in sorted(step.output_map.items()):  # a map has no order of its own
        if wire == ERRORS.name or tag_of(wire) is not None or member_of(wire) is not None or shown not in declared:
            continue
        placed = position_of(wire)
        owner = ordered[placed[0]] if placed is not None and placed[0] < len(ordered) else ""
        if placed is None or not owner or not shown.startswith(f"{owner}."):
            places = ", ".join(f"{position_name(place, '...')} of {name}" for place, name in enumerate(ordered))
            problem = f"{wire} is shown as {shown!r}, but by the order of the tasks' tags the outputs are {places}"
            raise TaskRefused(file, f"{STEP}.output_map.{wire}", problem, _remedy(file, names))
        tensor = declared[shown]
        kind = model_config_pb2.DataType.Name(tensor.data_type)
        outputs[owner].append(TensorSpec(placed[1], kind, tuple(tensor.dims), shown.removeprefix(f"{owner}.")))
    return tuple(Member(name, tags[name], tuple(outputs[name])) for name in names)
