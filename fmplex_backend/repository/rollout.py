"""A new version of a task is tried before it serves: as a canary, as a shadow, then promoted or rolled back.

Each is one change of the task's config.pbtxt, where the state of it all stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fmplex_backend.errors import TaskProblem
from fmplex_backend.families import family
from fmplex_backend.repository.candidates import (
    CANARY_SHARE,
    CANARY_VERSION,
    PARAMETERS,
    SHADOW_TOLERANCE,
    SHADOW_VERSION,
    TOLERANCE,
    Role,
    without_candidates,
)
from fmplex_backend.repository.writer import ModelRepository, Pipeline, Saved


@dataclass(frozen=True, slots=True)
class Tried:
    """A version that is tried beside the one that its task serves."""

    role: Role
    task: str
    version: int
    served: int


class Rollout(ModelRepository):
    """A repository whose tasks try new versions. All raise TaskProblem or Refused."""

    def canary(self, name: str, share: float, version: int | None = None) -> Tried:
        """Let a version answer a part of a task's requests, between 0 and 1; the highest version by default."""
        if not 0 < share < 1:
            raise TaskProblem(
                f"a canary's share is {share:g}, it must be between 0 and 1. For all requests: fmplex task promote"
            )
        return self._try("canary", name, version, {CANARY_SHARE: f"{share:.6g}"})

    def shadow(self, name: str, version: int | None = None, tolerance: float = TOLERANCE) -> Tried:
        """Let a version work on copies of a task's requests; the highest version by default.

        Args:
            tolerance: of numbers and vectors that count as the same; see decoders/agreement.py.
        """
        if not 0 <= tolerance < 1:
            raise TaskProblem(f"the tolerance is {tolerance:g}. It must be from 0 on and below 1, such as {TOLERANCE}")
        return self._try("shadow", name, version, {SHADOW_TOLERANCE: f"{tolerance:.6g}"})

    def stop(self, name: str, role: Role) -> None:
        """End a canary or a shadow; the task goes on serving its version."""
        with self._locked():
            self.task(name)
            proto = self._proto(name)
            if PARAMETERS[role][0] not in proto.parameters:
                raise TaskProblem(f"{name!r} has no {role}. Begin one: fmplex task {role} {name}")
            for key in PARAMETERS[role]:
                proto.parameters.pop(key, None)
            self._replace_config(name, proto)

    def promote(self, name: str) -> Saved:
        """Serve the version of a task's canary, of its shadow where it has no canary, or one that is held; both end."""
        with self._locked():
            backbone, spec = self._switchable(name)
            tried = [each.number for each in spec.candidates if each.number is not None]
            number = tried[0] if tried else self.versions(name)[-1]
            if not tried and number <= spec.version.number:
                served = spec.version.number
                serves = "which serves" if served == number else "whose directory is gone"
                raise TaskProblem(
                    f"{name!r} has neither a canary nor a shadow, and no version after {served}, {serves}. Save "
                    f"one, or name an earlier one: fmplex task rollback {name} --to VERSION"
                )
            self._check_there(name, number, self.versions(name))
            proto = self._serving(name, backbone, spec, number)
            self._replace_config(name, without_candidates(proto))
            return Saved(name, self.root / name / str(number), number, spec.vfm)

    def _try(self, role: Role, name: str, version: int | None, terms: Mapping[str, str]) -> Tried:
        with self._locked():
            backbone, spec = self.task(name)
            versions = self.versions(name)
            number = versions[-1] if version is None else version
            self._check_there(name, number, versions)
            served = spec.version.number
            if number == served:  # saved a moment ago: it serves already
                served = self._before(name, number, versions)
            one, other = (self._saved(self.root / name / str(each), backbone, spec) for each in (served, number))
            self._check_pair(role, name, (served, one), (number, other))
            proto = self._serving(name, backbone, spec, served)
            proto.parameters[CANARY_VERSION if role == "canary" else SHADOW_VERSION].string_value = str(number)
            for key, text in terms.items():
                proto.parameters[key].string_value = text
            self._replace_config(name, _without_stale(proto, served))
            return Tried(role, name, number, served)

    def _check_pair(self, role: Role, name: str, served: tuple[int, Pipeline], tried: tuple[int, Pipeline]) -> None:
        """Raise TaskProblem where a version cannot stand beside the one that serves: clients see one interface."""
        (old, one), (new, other) = served, tried
        problem = ""
        if one.takes != other.takes:
            problem = f"reads {other.takes}, version {old} reads {one.takes}"
        elif missing := [each for each in one.outputs if each not in other.outputs]:
            problem = f"does not make {', '.join(missing)}, as version {old} does"
        elif wrong := [
            each
            for each, size in one.outputs.items()
            if size is not None and other.outputs[each] is not None and other.outputs[each] != size
        ]:
            sizes = ", ".join(f"{each} of {other.outputs[each]} instead of {one.outputs[each]}" for each in wrong)
            problem = f"makes {sizes}, as version {old} does"
        if problem:
            raise TaskProblem(
                f"version {new} of {name!r} {problem}: one entry cannot show both. Save it as a task of its own, or "
                f"serve it at once: fmplex task rollback {name} --to {new}"
            )
        if role == "shadow" and one.config.decoder.kind != other.config.decoder.kind:
            raise TaskProblem(
                f"version {new} of {name!r} has a decoder of kind {other.config.decoder.kind!r}, version {old} one of "
                f"{one.config.decoder.kind!r}: their answers cannot be compared. Try it as a canary"
            )
        if role == "shadow" and family(other.config.family).streams:
            raise TaskProblem(
                f"tasks of the family {other.config.family!r}, as {name!r} is, answer in parts and may answer anew "
                f"each time: there is nothing to compare. Try it as a canary: fmplex task canary {name}"
            )


def _without_stale(proto: Any, served: int) -> Any:
    """Without candidates that are the version served, which it has just become."""
    for version, other in PARAMETERS.values():
        if version in proto.parameters and proto.parameters[version].string_value == str(served):
            proto.parameters.pop(version)
            proto.parameters.pop(other, None)
    return proto
