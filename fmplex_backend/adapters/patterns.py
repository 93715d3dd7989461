"""PEFT's rules for names of modules, with patterns out of a file that anybody may have written.

PEFT hands some of them to `re`, where a pattern of 20 characters can take years on one name and hold the interpreter's
lock all the while. Here a pattern with repetition, choice or groups is matched by another process, which the kernel
ends after a fifth of a second of processor time; the results are PEFT's own, as it is the same `re`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from fmplex_backend.adapters import match_names
from fmplex_backend.adapters.match_names import Query, found

MAX_LENGTH = 2_000  # characters of a pattern
MAX_PATTERNS = 4_096  # of one field
MAX_HERE = 256  # more, even plain ones, are matched by another process
SECONDS = 0.2  # of processor time; to start takes a tenth of it, to match a thousand names a few milliseconds
WAIT_S = 20.0  # on a machine with no processor time to spare
# No part of such a pattern can match in more than one way.
PLAIN = re.compile(r"(?:[A-Za-z0-9_.^$-]|\\[.\-_])*")
NUMBERED = r".*?\.[^.]*\.(?P<idx>\d+)\."  # the first number in a name, where no layers_pattern says which

Names = str | Sequence[str] | None  # one pattern, or ends of names


class BadPattern(ValueError):
    """A pattern that cannot be used; the message says why."""


def match(queries: Sequence[Query], names: Sequence[str], patterns: Iterable[str]) -> list[list[str | None]]:
    """`match_names.found`, within bounds; raises BadPattern.

    Args:
        patterns: what the file says, which the queries are made of.
    """
    given = list(patterns)
    if len(given) > MAX_PATTERNS:
        raise BadPattern(f"it holds {len(given)} patterns, {MAX_PATTERNS} at most")
    for pattern in given:
        if len(pattern) > MAX_LENGTH:
            raise BadPattern(f"a pattern has {len(pattern)} characters, {MAX_LENGTH} at most")
    if len(given) <= MAX_HERE and all(PLAIN.fullmatch(pattern) for pattern in given):
        return found(queries, names)
    return _by_another_process(tuple(queries), tuple(names))


@lru_cache(maxsize=64)  # tasks of one kind of training have the same patterns
def _by_another_process(queries: tuple[Query, ...], names: tuple[str, ...]) -> list[list[str | None]]:
    python = sys.executable or shutil.which("python3")
    if not python:
        raise BadPattern("there is no Python program to match it with")
    try:
        done = subprocess.run(
            [python, "-I", "-S", match_names.__file__, str(SECONDS)],
            input=json.dumps({"queries": queries, "names": names}).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=WAIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BadPattern(f"matching it with {len(names)} names takes more than {WAIT_S:g} s") from None
    if done.returncode < 0:
        raise BadPattern(f"matching it with {len(names)} names takes more than {SECONDS:g} s of processor time")
    if done.returncode:
        raise BadPattern(f"the process that matches it ended with status {done.returncode}")
    answer: Any = json.loads(done.stdout)
    if isinstance(answer, dict):
        raise BadPattern(f"it is not a regular expression: {answer['invalid']}")
    found_there: list[list[str | None]] = answer
    return found_there


def with_pattern(keys: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """For each name the first key of a rank_pattern or alpha_pattern that it matches; names without one are left out.

    PEFT's get_pattern_key. Raises BadPattern.
    """
    answers = match([Query("match", rf"(.*\.)?({key})$") for key in keys], names, keys)
    first: dict[str, str] = {}
    for key, answer in zip(keys, answers, strict=True):
        for name, matched in zip(names, answer, strict=True):
            if matched is not None:
                first.setdefault(name, key)
    return first


def named(pattern: Names, names: Sequence[str]) -> set[str]:
    """Those names that target_modules or exclude_modules mean; raises BadPattern."""
    if isinstance(pattern, str):
        (answer,) = match([Query("fullmatch", pattern)], names, [pattern])
        return {name for name, matched in zip(names, answer, strict=True) if matched is not None}
    return {name for name in names if any(f".{name}".endswith(f".{end}") for end in _ends(pattern))}


def ending(pattern: Names, names: Sequence[str]) -> set[str]:
    """Those names that IA3's feedforward_modules mean: ends need not begin at a dot there; raises BadPattern."""
    if isinstance(pattern, str):
        return named(pattern, names)
    return {name for name in names if name.endswith(tuple(_ends(pattern)))}


def in_layers(layers: int | Sequence[int], pattern: Names, names: Iterable[str]) -> set[str]:
    """Those names that lie in a layer of layers_to_transform, by layers_pattern; raises BadPattern."""
    ordered = sorted(names)
    patterns = [pattern] if isinstance(pattern, str) and pattern else _ends(pattern)
    expressions = [rf"(?:^|.*?\.){each}\.(?P<idx>\d+)\." for each in patterns] or [NUMBERED]
    answers = match([Query("match", each) for each in expressions], ordered, patterns)
    wanted = {layers} if isinstance(layers, int) else set(layers)
    inside = set()
    for place, name in enumerate(ordered):
        number = next((answer[place] for answer in answers if answer[place] is not None), None)
        if number and int(number) in wanted:
            inside.add(name)
    return inside


def _ends(pattern: Names) -> Sequence[str]:
    """Ends of names, of a bounded number; raises BadPattern."""
    ends = [] if pattern is None or isinstance(pattern, str) else pattern
    if len(ends) > MAX_PATTERNS:
        raise BadPattern(f"it holds {len(ends)} names, {MAX_PATTERNS} at most")
    return ends
