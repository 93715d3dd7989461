"""Groups are written: of tasks of one backbone that read the same input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fmplex_backend.errors import TaskProblem
from fmplex_backend.families import family
from fmplex_backend.families.spec import Family
from fmplex_backend.interface import ERRORS, USAGE, USAGE_DIMS, TensorSpec, member_name, position_name, tag_name, tag_of
from fmplex_backend.repository.config import load_backbone_config
from fmplex_backend.repository.configs import CONFIG, Terms, backbone_parameters, put_terms
from fmplex_backend.repository.groups import GROUP, GroupSpec, rewrite
from fmplex_backend.repository.parameters import BackboneConfig
from fmplex_backend.repository.tags import check_tag
from fmplex_backend.repository.tasks import BrokenTask, TaskSpec
from fmplex_backend.repository.writer import ModelRepository


class GroupRepository(ModelRepository):
    """A repository whose groups are written and removed."""

    def create(
        self,
        name: str,
        members: Sequence[str],
        *,
        backbone: str = "",
        terms: Terms | None = None,
        replace: bool = False,
    ) -> int:
        """Write a group of tasks, or another entry in the place of the one it has; returns its tag.

        Args:
            backbone: what the tasks are expected to be on; "": what they are on.
            terms: of which a group has `slo_ms`.
            replace: a group that there is keeps its tag.

        Raises TaskProblem, or the Refused of a task that cannot be served.
        """
        terms = terms or Terms()
        terms.check()
        with self._locked():
            own = self._group(name) if (self.root / name).exists() and replace else None
            if own is None:
                self.check_free(name)
            tasks = {member: self._member(name, member) for member in members}
            found = self._one_backbone(name, members, {member: bound for member, (bound, _) in tasks.items()}, backbone)
            config = self._checked(name, members, found)
            tags = {member: spec.vfm for member, (_, spec) in tasks.items()}
            tag = self._free_tag(name, found) if own is None else own
            if own is not None:
                check_tag(self.root, self.names(), name, found, own)
            proto = self._group_proto(name, found, family(config.family), tag, tags)
            put_terms(proto, terms)
            if own is None:
                self._write_directory(name, str(text_format.MessageToString(proto)))
            else:
                self._replace_config(name, proto)
            return tag

    def renew(self, name: str) -> None:
        """Write a group's entry anew, of the same tasks as they are now; raises as `create` does."""
        _, spec = self.group(name)
        slo_ms = None if spec.slo is None else spec.slo * 1000
        self.create(name, [member.name for member in spec.members], terms=Terms(slo_ms=slo_ms), replace=True)

    def group(self, name: str) -> tuple[str, GroupSpec]:
        """A group that can be read, with its backbone's name; raises TaskProblem or TaskRefused."""
        found = self.groups()
        if name not in found:
            known = ", ".join(sorted(found)) or "(none)"
            raise TaskProblem(f"there is no group {name!r} in {self.root}, which has {known}. Name one of them")
        backbone, entry = found[name]
        if isinstance(entry, BrokenTask):
            raise entry.error
        return backbone, entry

    def groups_of(self, task: str) -> list[str]:
        """The groups that a task is in."""
        groups = ((name, entry) for name, (_, entry) in self.groups().items() if isinstance(entry, GroupSpec))
        return sorted(name for name, entry in groups if task in {member.name for member in entry.members})

    def check_group(self, spec: GroupSpec) -> None:
        """Raise where a group's entry does not fit its tasks as they are now."""
        name, names = spec.name, [member.name for member in spec.members]
        tasks = {member: self._member(name, member) for member in names}
        bound = {member: on for member, (on, _) in tasks.items()}
        self._checked(name, names, self._one_backbone(name, names, bound, ""))
        if moved := [member.name for member in spec.members if tasks[member.name][1].vfm != member.tag]:
            raise TaskProblem(
                f"{spec.config} asks for {', '.join(moved)} by tags that they had before. Write it anew: "
                f"{rewrite(name, names, self.root)}"
            )

    def remove_group(self, name: str) -> None:
        """Remove a group's directory; its tasks stay. Raises TaskProblem."""
        with self._locked():
            if name not in self.groups():
                self.group(name)  # raises, naming the groups there are
            self._move_away(name)

    # -- steps of these

    def _group(self, name: str) -> int | None:
        """The tag of a group that is to be replaced; None where it is to get one."""
        if name not in self.groups():
            raise TaskProblem(f"{self.root / name} exists and is no group. Choose another name")
        return self.groups()[name][1].vfm

    def _member(self, group: str, name: str) -> tuple[str, TaskSpec]:
        if name in self.groups():
            raise TaskProblem(f"{name!r} is a group itself. Name its tasks in its place")
        if "," in name:
            raise TaskProblem(f"{name!r} has a comma in it, which parts the names of a group's tasks. Rename the task")
        return self.task(name)

    def _one_backbone(self, name: str, members: Sequence[str], bound: dict[str, str], backbone: str) -> str:
        if len(bound) < len(members) or not members:
            problem = f"the tasks of {name!r} are {', '.join(members) or 'none'}"
            raise TaskProblem(f"{problem}. Name at least one task, and each once")
        if len(every := set(bound.values()) | ({backbone} if backbone else set())) > 1:
            listed = ", ".join(f"{member} on {on}" for member, on in bound.items())
            wanted = f", {backbone} is asked for" if backbone else ""
            raise TaskProblem(f"a group is of one backbone: {listed}{wanted}. Name tasks of one of {sorted(every)}")
        return every.pop()

    def _checked(self, name: str, members: Sequence[str], backbone: str) -> BackboneConfig:
        """The backbone's parameters; raises TaskProblem where it, or what the tasks read, makes no group."""
        file = self.root / backbone / CONFIG
        config = load_backbone_config(file, backbone_parameters(self.root, backbone) or {})
        if family(config.family).streams:
            raise TaskProblem(
                f"{', '.join(members)} may answer in several parts, as tasks of the family {config.family!r} do, and a "
                f"group gathers whole answers. Ask them one by one"
            )
        if len(members) > config.group_members:
            raise TaskProblem(
                f"{name!r} has {len(members)} tasks, {backbone!r} takes {config.group_members} in a group. Name fewer, "
                f"or raise group_members in {file} and load the backbone again"
            )
        inputs = {member: [(each.name, *each.dims) for each in self._proto(member).input] for member in members}
        if any(each != inputs[members[0]] for each in inputs.values()):
            listed = ", ".join(f"{member} {_shown(each)}" for member, each in inputs.items())
            raise TaskProblem(f"a group's tasks read the same input, these do not: {listed}. Name tasks that do")
        return config

    def _group_proto(self, name: str, backbone: str, spec: Family, tag: int, tags: dict[str, int]) -> Any:
        protos = {member: self._proto(member) for member in tags}
        first = next(iter(protos.values()))
        config = model_config_pb2.ModelConfig(name=name, platform="ensemble")
        config.max_batch_size = min(proto.max_batch_size for proto in protos.values())
        config.input.extend(first.input)
        step = config.ensemble_scheduling.step.add(model_name=backbone, model_version=-1)
        for key, value in _step(first, backbone).input_map.items():
            step.input_map[key] = value
        known = {each.name: each for each in spec.outputs}
        ordered = sorted(tags, key=tags.__getitem__)
        for member in tags:
            for wire, shown in sorted(_step(protos[member], backbone).output_map.items()):
                if tag_of(wire) is None and wire in known:
                    own = position_name(ordered.index(member), wire)
                    _add(config, step, own, f"{member}.{shown}", known[wire])
            receipt = TensorSpec(USAGE, "TYPE_INT64", USAGE_DIMS)
            _add(config, step, member_name(tags[member]), f"{member}.{USAGE}", receipt)
        errors = TensorSpec(ERRORS.name, ERRORS.data_type, (len(tags),))
        _add(config, step, ERRORS.name, ERRORS.client_name, errors)
        _add(config, step, tag_name(tag), USAGE, TensorSpec(USAGE, "TYPE_INT64", USAGE_DIMS))
        config.parameters[GROUP].string_value = ",".join(tags)
        return config


def _add(config: Any, step: Any, wire: str, shown: str, spec: TensorSpec) -> None:
    """Dims that differ from task to task stay open: a task's next version may have more labels."""
    config.output.add(name=shown, data_type=spec.data_type, dims=spec.dims)
    step.output_map[wire] = shown


def _step(proto: Any, backbone: str) -> Any:
    return next(step for step in proto.ensemble_scheduling.step if step.model_name == backbone)


def _shown(inputs: Sequence[tuple[Any, ...]]) -> str:
    return ", ".join(f"{name} {list(dims)}" for name, *dims in inputs)
