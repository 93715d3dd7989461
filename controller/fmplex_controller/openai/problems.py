"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}, with the HTTP status of their kind."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from fmplex_backend.errors import Busy, DeadlineExceeded, FmplexError, ServerProblem, TaskProblem, Unreachable

log = logging.getLogger("fmplex.openai")
INVALID, SERVER = "invalid_request_error", "server_error"
BAD = ("INVALID_ARGUMENT", "INVALID_ARG", "400")
# What stands before a backbone's message: the address that the client asked, and the task's entry in Triton.
_BY_CLIENT, _BY_TRITON = re.compile(r"^\S+:\d+: "), re.compile(r"^in ensemble '[^']*', ")
TIME_IS_OVER = ("(its max_seconds)", "Request timeout expired")  # a backbone's words, and Triton's
TOO_LATE = "There was no answer within the time that the server, or the task, gives a request: send less at a time"
UNAVAILABLE = "The server cannot be reached, or is not ready: try again later"
# A backbone's words for prompt and max_tokens that are too long for it: clients cut the conversation by OpenAI's code.
_TOO_LONG = re.compile(r"tokens are more than the backbone's|of prompt and answer together|far beyond \d+ tokens")
SAMPLING = "sampling_parameters."  # before the name of a field that clients of this API send by that name alone
# Whose names the backbone's messages begin with.
_NAMED = re.compile(rf"{re.escape(SAMPLING)}(?P<field>\w+)|(?P<input>messages|text_input)\b")


class ApiProblem(Exception):
    """An error as the client is told it."""

    def __init__(
        self, status: int, message: str, *, kind: str = INVALID, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """That go with its status."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": "1"} if self.status in (429, 503) else {}


def of_field(param: str, problem: str) -> ApiProblem:
    """A field of a request is wrong, or asks for what there is not."""
    return ApiProblem(400, f"{param}: {problem}", param=param)


def of_validation(error: ValidationError) -> ApiProblem:
    """Of the first field that pydantic names."""
    first = error.errors(include_url=False, include_context=False)[0]
    param = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in _without_types(first["loc"]))
    said = f"{first['msg'][0].lower()}{first['msg'][1:]}".removeprefix("value error, ")
    return ApiProblem(400, f"{param.lstrip('.') or 'the body'}: {said}", param=param.lstrip(".") or None)


def _without_types(place: tuple[int | str, ...]) -> list[int | str]:
    """pydantic names the members of unions, too, as no field can be named: list[str], function-..."""
    return [each for each in place if isinstance(each, int) or (re.fullmatch(r"[a-z_]+", each) and each != "str")]


def of_problem(error: FmplexError, model: str, sent_as: Mapping[str, str] | None = None) -> ApiProblem:
    """What the server, or the way to it, has answered. The addresses behind this one are for the log alone.

    Args:
        sent_as: fields that the client has sent by other names than the backbone's.
    """
    text = _BY_TRITON.sub("", _BY_CLIENT.sub("", str(error)))
    if isinstance(error, Busy):
        return ApiProblem(429, text, kind="requests", code="rate_limit_exceeded")
    if isinstance(error, DeadlineExceeded) or any(words in text for words in TIME_IS_OVER):
        log.warning("%s: %s", model, error)
        return ApiProblem(504, TOO_LATE, kind=SERVER, code="timeout")
    status = error.status if isinstance(error, ServerProblem) else ""
    is_unknown = f"'{model}' has no available versions" in text  # Triton's UNAVAILABLE
    if isinstance(error, Unreachable) and not is_unknown:
        log.warning("%s: %s", model, error)
        return ApiProblem(503, UNAVAILABLE, kind=SERVER, code="unavailable")
    if is_unknown or status in ("NOT_FOUND", "404") or "unknown model" in text:
        problem = f"The model `{model}` does not exist, or is not loaded. GET /v1/models lists those there are"
        return ApiProblem(404, problem, param="model", code="model_not_found")
    if isinstance(error, TaskProblem) or status in BAD:
        named = _NAMED.match(text)
        code = "context_length_exceeded" if _TOO_LONG.search(text) else None
        if named is None:
            return ApiProblem(400, text, code=code)
        name = named["field"] or named["input"]
        param = (sent_as or {}).get(name, name)
        return ApiProblem(400, f"{param}{text[named.end() :]}", param=param, code=code)
    return ApiProblem(500, text, kind=SERVER)
