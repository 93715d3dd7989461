"""A conversation as a request's `messages` has it, and the turns that a chat template is given. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
    return [_turn(each, f"{source}[{place}]") for place, each in enumerate(document)]


def _turn(given: Any, source: str) -> Turn:
    if not isinstance(given, dict):
        raise InvalidRequest(f'{source} is to be an object with "role" and "content"')
    if odd := sorted(given.keys() - {"role", "content"}):
        raise InvalidRequest(f"{source}: there is no field {odd[0]!r}; there are role and content")
    role, content = given.get("role"), given.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidRequest(f"{source}.role is {str(role)[:80]!r}: say {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise InvalidRequest(f"{source}.content is to be a text")
    return {"role": ROLES[role], "content": content}


def with_system(turns: Sequence[Turn], system: str) -> list[Turn]:
    """Turns that begin with a task's system prompt, and go on with their own in the same turn: templates take one."""
    if not system:
        return list(turns)
    if turns and turns[0]["role"] == SYSTEM:
        own = turns[0]["content"]
        return [{"role": SYSTEM, "content": f"{system}\n\n{own}" if own else system}, *turns[1:]]
    return [{"role": SYSTEM, "content": system}, *turns]
