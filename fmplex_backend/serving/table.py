"""What answers the requests that come with a tag: a task's vFM, a group, or an error."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from fmplex_backend.errors import FmplexError, TaskRefused
from fmplex_backend.repository.groups import GROUP, GroupSpec, Member, rewrite
from fmplex_backend.types import SharedCounts, Vfm


@dataclass(frozen=True, slots=True)
class Refusal:
    """A task whose requests are answered with an error."""

    name: str
    error: FmplexError
    counts: SharedCounts


@dataclass(frozen=True, slots=True)
class Group:
    """A group as its entry says, and as it said before, by which the server may still send requests.

    `counts` are of its requests, and of those of them that were refused as a whole.
    """

    spec: GroupSpec
    former: GroupSpec | None = None
    counts: SharedCounts = field(default_factory=SharedCounts)

    @property
    def name(self) -> str:
        """As its directory in the model repository is named."""
        return self.spec.name

    def asked_by(self, tags: Collection[int]) -> GroupSpec | None:
        """The entry by which a request comes that asks for the tasks of these tags; None where it is neither."""
        specs = [spec for spec in (self.spec, self.former) if spec is not None]
        return next((spec for spec in specs if {member.tag for member in spec.members} == set(tags)), None)


Answering = Vfm | Group | Refusal
Table = Mapping[int, Answering]  # by tag


def vfm_of(spec: GroupSpec, member: Member, found: Answering | None) -> Vfm:
    """What answers for a member of a group; raises FmplexError where it cannot be asked.

    Args:
        found: what has the member's tag now.
    """
    if isinstance(found, Refusal) and found.name == member.name:
        raise found.error
    if not isinstance(found, Vfm) or found.name != member.name:
        has = "no task has it" if found is None else f"{found.name!r} has it"
        raise _changed(
            spec,
            f"{member.name!r} is asked by VFM_{member.tag}, and {has}: it was removed or renamed, or has another tag "
            "or backbone now",
        )
    takes, gives = found.extensions.takes, found.extensions.outputs
    if takes not in spec.inputs:
        raise _changed(spec, f"{member.name!r} reads {takes} now, the group has {', '.join(spec.inputs)}")
    if missing := [each.name for each in member.outputs if each.name not in gives]:
        raise _changed(spec, f"{member.name!r} does not make {', '.join(missing)} any more, but {', '.join(gives)}")
    return found


def _changed(spec: GroupSpec, problem: str) -> TaskRefused:
    names = [member.name for member in spec.members]
    remedy = f"Write the group anew, of tasks that there are: {rewrite(spec.name, names, spec.config.parent.parent)}"
    return TaskRefused(spec.config, f"parameters.{GROUP}", problem, remedy)
