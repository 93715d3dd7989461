"""Versions that are tried beside the one that a task serves, as its entry's parameters say.

    canary_version, canary_share     a canary: this part of the requests, 0 to 1, is answered by that version
    shadow_version, shadow_tolerance a shadow: it gets copies of requests, and its answers are compared and dropped

What is wrong with one of them is no reason not to serve the task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fmplex_backend.errors import TaskRefused
from fmplex_backend.families import family
from fmplex_backend.repository.config import load_task_config
from fmplex_backend.repository.versions import Version, version_at

Role = Literal["canary", "shadow"]
ROLES: tuple[Role, ...] = ("canary", "shadow")
CANARY_VERSION, CANARY_SHARE = "canary_version", "canary_share"
SHADOW_VERSION, SHADOW_TOLERANCE = "shadow_version", "shadow_tolerance"
PARAMETERS: dict[Role, tuple[str, str]] = {
    "canary": (CANARY_VERSION, CANARY_SHARE),
    "shadow": (SHADOW_VERSION, SHADOW_TOLERANCE),
}
TOLERANCE = 0.01  # of numbers, and of the cosine distance of vectors; see decoders/agreement.py


@dataclass(frozen=True, slots=True)
class CandidateSpec:
    """A version that is tried; `problem` says why it cannot be, and then there is no `version`."""

    role: Role
    number: int | None  # None where the entry does not tell it
    version: Version | None = None
    share: float = 0.0  # of the requests that a canary answers
    tolerance: float = TOLERANCE  # of a shadow's answers
    problem: str = ""


def candidates_in(file: Path, parameters: Mapping[str, str], served: int) -> tuple[CandidateSpec, ...]:
    """What an entry says; raises OSError where that may pass.

    Args:
        file: the entry's config.pbtxt.
        served: the number of the version that the task serves.
    """
    return tuple(_candidates(file, parameters, served))


def _candidates(file: Path, parameters: Mapping[str, str], served: int) -> Iterator[CandidateSpec]:
    for role in ROLES:
        if not any(key in parameters for key in PARAMETERS[role]):
            continue
        number: int | None = None
        try:
            number = _number(file, parameters, role)
            if number == served:
                raise TaskRefused(
                    file,
                    f"parameters.{PARAMETERS[role][0]}",
                    f"{number} is the version that the task serves",
                    "Name another one",
                )
            share = _share(file, parameters) if role == "canary" else 0.0
            tolerance = _tolerance(file, parameters) if role == "shadow" else TOLERANCE
            yield CandidateSpec(role, number, version_at(file.parent, number), share, tolerance)
        except TaskRefused as error:
            yield CandidateSpec(role, number, problem=str(error))


def _number(file: Path, parameters: Mapping[str, str], role: Role) -> int:
    key = PARAMETERS[role][0]
    text = parameters.get(key, "")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        problem = f"{text!r} is no version's number" if text else "it is missing"
        raise TaskRefused(file, f"parameters.{key}", problem, 'Write e.g. "3"')
    return int(text)


def _share(file: Path, parameters: Mapping[str, str]) -> float:
    text = parameters.get(CANARY_SHARE, "")
    value = _float(text)
    if not 0 < value < 1:
        problem = f"{text!r} is not a number between 0 and 1" if text else "it is missing"
        raise TaskRefused(file, f"parameters.{CANARY_SHARE}", problem, 'Write e.g. "0.05" for 5%')
    return value


def _tolerance(file: Path, parameters: Mapping[str, str]) -> float:
    text = parameters.get(SHADOW_TOLERANCE)
    value = TOLERANCE if text is None else _float(text)
    if not 0 <= value < 1:
        problem = f"{text!r} is not a number from 0 on and below 1"
        raise TaskRefused(file, f"parameters.{SHADOW_TOLERANCE}", problem, f'Write e.g. "{TOLERANCE}"')
    return value


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def without_candidates(proto: Any) -> Any:
    """An entry, a ModelConfig message, after they are taken out of it."""
    for keys in PARAMETERS.values():
        for key in keys:
            proto.parameters.pop(key, None)
    return proto


# -- comparing answers

Compare = Callable[[Mapping[str, Any], Mapping[str, Any]], Sequence[bool]]  # of each item, whether two answers agree


def comparison(served: Path, candidate: Path, tolerance: float) -> Compare:
    """How answers of two versions, given as directories, are compared: as their decoders' kind says.

    Raises TaskRefused where they cannot be.
    """
    file = candidate / "task.json"
    one, other = load_task_config(served / "task.json"), load_task_config(file)
    if one.decoder.kind != other.decoder.kind:
        problem = f"it is {other.decoder.kind!r}, that of the version served is {one.decoder.kind!r}: answers of "
        remedy = "Try it as a canary"
        raise TaskRefused(file, "decoder.kind", f"{problem}different kinds cannot be compared", remedy)
    if family(other.family).streams:
        problem = f"tasks of the family {other.family!r} answer in parts, and may answer anew each time"
        raise TaskRefused(file, "family", f"{problem}: there is nothing to compare", "Try it as a canary")

    def compare(served_tensors: Mapping[str, Any], tensors: Mapping[str, Any]) -> Sequence[bool]:
        found: Sequence[bool] = one.decoder.agreed(served_tensors, tensors, tolerance).tolist()
        return found

    return compare
