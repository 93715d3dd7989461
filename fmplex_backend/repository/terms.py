"""The terms in an entry's parameters, where every value is a string; each raises TaskRefused where it is not one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from fmplex_backend.errors import TaskRefused
from fmplex_backend.types import weight_problem

# In an entry's parameters, a task's arguments and the command line, in this order: those of all tasks, and those that
# only some families know (Family.limits).
COMMON = ("weight", "slo_ms", "max_queue", "max_queue_bytes", "max_seconds")
TERMS = (*COMMON, "max_running", "max_kv_share")
# What a rebind writes, so that a task's account goes along with it.
AHEAD, REBOUND_AT = "ahead_s", "rebound_at"  # seconds; seconds since 1970
AHEAD_S = 10.0  # after which it is nothing to go by any more: a backbone that starts later begins all accounts anew
MOST_AHEAD_S = 10.0


def number(file: Path, parameters: Mapping[str, str], key: str, default: float) -> float:
    """A number above 0."""
    text = parameters.get(key)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise TaskRefused(file, f"parameters.{key}", f"{text!r} is not a number above 0", 'Write e.g. "3"')
    return value


def weight(file: Path, parameters: Mapping[str, str]) -> float:
    """A task's share; 1 where the entry does not say it."""
    value = number(file, parameters, "weight", default=1.0)
    if problem := weight_problem(value):
        raise TaskRefused(file, "parameters.weight", f"{parameters['weight']!r} is {problem}", 'Write e.g. "3"')
    return value


def whole(file: Path, parameters: Mapping[str, str], key: str) -> int | None:
    """A whole number above 0; None where the entry does not say it."""
    if key not in parameters:
        return None
    value = number(file, parameters, key, 1.0)
    if value != int(value):
        raise TaskRefused(file, f"parameters.{key}", f"{parameters[key]!r} is not a whole number", "Round it")
    return int(value)


def optional(file: Path, parameters: Mapping[str, str], key: str) -> float | None:
    """A number above 0; None where the entry does not say it."""
    return None if key not in parameters else number(file, parameters, key, 0.0)


def part(file: Path, parameters: Mapping[str, str], key: str) -> float | None:
    """A number above 0, of 1 at most; None where the entry does not say it."""
    value = optional(file, parameters, key)
    if value is not None and value > 1:
        raise TaskRefused(file, f"parameters.{key}", f"{parameters[key]!r} is more than 1", 'Write e.g. "0.5"')
    return value


def flag(file: Path, parameters: Mapping[str, str], key: str) -> bool:
    """Whether the entry says true; false where it says nothing."""
    text = parameters.get(key, "false")
    if text not in ("true", "false"):
        raise TaskRefused(file, f"parameters.{key}", f"{text!r} is neither 'true' nor 'false'", 'Write "true"')
    return text == "true"


def ahead_s(parameters: Mapping[str, str], now: float) -> float:
    """Seconds by which a task was ahead of its share on another backbone that it left a moment ago; 0 for most.

    It is a hint that no person writes: one that cannot be read is no reason to refuse a task.

    Args:
        now: seconds since 1970.
    """
    try:
        ahead, at = float(parameters.get(AHEAD, "0")), float(parameters.get(REBOUND_AT, "0"))
    except ValueError:
        return 0.0
    is_recent = math.isfinite(ahead) and math.isfinite(at) and now - at <= AHEAD_S
    return min(max(0.0, ahead), MOST_AHEAD_S) if is_recent else 0.0


def slo(file: Path, parameters: Mapping[str, str]) -> float | None:
    """The latency objective, in seconds; None where the entry has none."""
    wanted = optional(file, parameters, "slo_ms")
    return None if wanted is None else wanted / 1000


def term_text(value: float | bool) -> str:
    """A term's value as an entry has it; of a number the shortest text of exactly this one: 3, 0.25, 1234567."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if value == int(value) else repr(value)
