"""Fields that several requests have: what the backbone is passed, what is ignored, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fmplex_controller.openai.problems import ApiProblem, of_field, of_validation

MAX_CHOICES = 128  # of one request: its n times its prompts
MAX_BEST = 20  # logarithmic probabilities of each token, OpenAI's limit for chats
# Of vLLM's names beside OpenAI's; the backbone says which values they may have.
PASSED_ON = (
    *("temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos"),
)
# They change no answer here.
IGNORED = {
    *("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls",),
}
# What is not there, and the values that ask for nothing.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "store": (False,),
    "suffix": ("",),
}

Body = TypeVar("Body", bound=BaseModel)


def listed(value: Any) -> Any:
    """One text as a list of one; raises ValueError for token ids, which OpenAI takes in their place."""
    if isinstance(value, list) and any(not isinstance(each, str) for each in value):
        raise ValueError(
            "token ids are not taken, whose tokenizer this server cannot know: send texts (of LangChain's "
            "OpenAIEmbeddings with check_embedding_ctx_length=False)"
        )
    return [value] if isinstance(value, str) else value


Texts = Annotated[list[str], BeforeValidator(listed), Field(min_length=1)]


class StreamOptions(BaseModel):
    """What a stream has beside the answer; obfuscation, which pads its parts, is not done."""

    include_usage: bool = False


class Asked(BaseModel):
    """What a chat's and a completion's request have in common."""

    model_config = ConfigDict(extra="allow")

    model: Annotated[str, Field(min_length=1, max_length=255)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = 1
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def sent_as(self) -> dict[str, str]:
        """The client's names of fields that the backbone has others for."""
        return {}

    def sampling(self) -> dict[str, Any]:
        """As the backbone takes it; what is left out is the task's own default."""
        every = {name: getattr(self, name, None) for name in PASSED_ON} | {"max_tokens": self.max_tokens}
        return {name: value for name, value in every.items() if value is not None}

    def check(self) -> None:
        """Raise ApiProblem for a field that asks for what is not there."""
        if self.stream_options is not None and not self.stream:
            raise of_field("stream_options", "it is only for a request with stream: true")
        refuse_others(self.model_extra or {}, {*PASSED_ON})


def refuse_others(extra: Mapping[str, Any], known: set[str]) -> None:
    """Raise ApiProblem for a field that is not known, or not supported with this value."""
    for name, value in extra.items():
        if name in known or name in IGNORED or value is None:
            continue
        if name not in REFUSED:
            raise ApiProblem(400, f"Unrecognized request argument supplied: {name[:80]}", param=name[:80])
        if value not in REFUSED[name]:
            raise of_field(name, f"this server does not support it (got {json.dumps(value)[:80]}): leave it out")


def parsed(kind: type[Body], body: bytes) -> Body:
    """A request's body; raises ApiProblem."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise of_validation(error) from None
