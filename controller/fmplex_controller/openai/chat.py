"""/v1/chat/completions."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from fmplex_controller.openai.answering import Answering, Choice
from fmplex_controller.openai.generating import Question
from fmplex_controller.openai.logprobs import of_chat
from fmplex_controller.openai.problems import of_field
from fmplex_controller.openai.requests import MAX_BEST, Asked, parsed
from fmplex_controller.openai.tasks import Part


class ContentPart(BaseModel):
    """A part of a message's content: a text."""

    model_config = ConfigDict(extra="allow")

    type: str
    text: str = ""


class Message(BaseModel):
    """A turn. What a client got as an answer may be sent again as it is, with fields that hold nothing."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[ContentPart] | None = None


class ChatRequest(Asked):
    """The body."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_BEST)] | None = None

    @property
    def sent_as(self) -> dict[str, str]:
        return {} if self.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"}

    def sampling(self) -> dict[str, Any]:
        found = super().sampling()
        if self.max_completion_tokens is not None:  # the name that takes the place of max_tokens
            found["max_tokens"] = self.max_completion_tokens
        return found | ({"logprobs": self.top_logprobs or 0} if self.logprobs else {})


def chat(body: bytes) -> ChatAnswering:
    """What a request asks; raises ApiProblem."""
    asked = parsed(ChatRequest, body)
    asked.check()
    if asked.top_logprobs is not None and not asked.logprobs:
        raise of_field("top_logprobs", "it needs logprobs: true")
    turns = [_turn(message, f"messages[{place}]") for place, message in enumerate(asked.messages)]
    return ChatAnswering(asked, [Question("", {"messages": json.dumps(turns, ensure_ascii=False)})])


def _turn(message: Message, source: str) -> dict[str, str]:
    """As the backbone's chat template takes it: `name` is left out, as most templates do."""
    for name, value in (message.model_extra or {}).items():
        if value and name != "name":
            raise of_field(f"{source}.{name}", "this server does not support it: leave it out")
    if message.role in ("tool", "function"):
        raise of_field(f"{source}.role", f"this server calls no tools, and takes no {message.role}'s turn")
    if not isinstance(message.content, list):
        return {"role": message.role, "content": message.content or ""}
    for place, part in enumerate(message.content):
        if part.type != "text":
            raise of_field(f"{source}.content[{place}].type", f"it is {part.type[:80]!r}, and tasks read text alone")
    return {"role": message.role, "content": "".join(part.text for part in message.content)}


class ChatAnswering(Answering):
    """Its answer."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"
    asked: ChatRequest

    def choice(self, place: int, answer: Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return {
            "index": place,
            "message": message,
            "logprobs": of_chat(answer.logprobs, self.asked.top_logprobs or 0),
            "finish_reason": answer.finish_reason,
        }

    def opening(self, place: int) -> dict[str, Any]:
        return self._delta(place, {"role": "assistant", "content": ""}, None, None)

    def delta(self, place: int, part: Part) -> dict[str, Any]:
        told = of_chat(part.logprobs, self.asked.top_logprobs or 0)
        return self._delta(place, {"content": part.text} if part.text else {}, told, part.finish_reason or None)

    @staticmethod
    def _delta(place: int, delta: dict[str, Any], logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
        return {"index": place, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
