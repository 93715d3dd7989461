"""Conversations, as requests and training rows have them, and the turns that a chat template is given. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fmplex_backend.errors import InvalidRequest

Turn = dict[str, str]  # role and content, as chat templates take them
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = {SYSTEM: SYSTEM, "developer": SYSTEM, USER: USER, ASSISTANT: ASSISTANT}  # developer: OpenAI's newer name
MAX_TURNS = 4096


def read_turns(text: str, source: str) -> list[Turn]:
    """The turns of a JSON list of {"role": ..., "content": ...}; raises InvalidRequest, naming `source`."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{source} is not JSON: {error}") from None
    if not isinstance(document, list) or not document:
        raise InvalidRequest(f'{source} is to be a JSON list such as [{{"role": "user", "content": "Hello"}}]')
    if len(document) > MAX_TURNS:
        raise InvalidRequest(f"{source} has {len(document)} turns, more than {MAX_TURNS}: leave the oldest out")
    return [_requested(each, f"{source}[{place}]") for place, each in enumerate(document)]


def _requested(given: Any, source: str) -> Turn:
    if not isinstance(given, dict):
        raise InvalidRequest(f'{source} is to be an object with "role" and "content"')
    if odd := sorted(given.keys() - {"role", "content"}):
        raise InvalidRequest(f"{source}: there is no field {odd[0]!r}; there are role and content")
    try:
        return turn_of(given, source)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def turn_of(given: Mapping[str, Any], source: str) -> Turn:
    """A message as chat templates take it; raises ValueError, naming `source`, where it is none."""
    role, content = given.get("role"), given.get("content")
    if isinstance(content, (list, tuple)) and all(isinstance(each, Mapping) and "text" in each for each in content):
        content = "".join(str(each["text"]) for each in content)  # the parts that OpenAI's format allows
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{source}.role is {str(role)[:80]!r}: say {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"{source}.content is {str(content)[:80]!r}: it is to be a text")
    return {"role": ROLES[role], "content": content}


def with_system(turns: Sequence[Turn], system: str) -> list[Turn]:
    """Turns that begin with a task's system prompt, and go on with their own in the same turn: templates take one."""
    if not system:
        return list(turns)
    if turns and turns[0]["role"] == SYSTEM:
        own = turns[0]["content"]
        return [{"role": SYSTEM, "content": f"{system}\n\n{own}" if own else system}, *turns[1:]]
    return [{"role": SYSTEM, "content": system}, *turns]
