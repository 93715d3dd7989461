"""From a request's tensors to what it asks for: checked, templated, tokenised. Off the engine thread."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fmplex_backend.errors import InvalidRequest, TaskRefused
from fmplex_backend.families.causal_lm.conversation import USER, Turn, read_turns, with_system
from fmplex_backend.families.causal_lm.inputs import (
    EXCLUDE_INPUT,
    MESSAGES,
    PROMPT,
    RETURN_CUMULATIVE,
    SAMPLING_PARAMETERS,
    STREAM,
)
from fmplex_backend.families.causal_lm.sampling import FIELDS, Sampling
from fmplex_backend.families.causal_lm.sections import Generator, Prompt
from fmplex_backend.families.causal_lm.sequence import Asked
from fmplex_backend.types import Request

TOKEN_BYTES = 512  # no token of a text has more on average: a longer text need not be tokenised to be refused
MAX_JSON = 1 << 16  # bytes of sampling_parameters
OPENING = {"logit_bias": "{"}  # of a parameter's text that is JSON; of the others a list
WORDS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Reader:
    """How a task's requests are read.

    Args:
        max_length: tokens of prompt and answer together.
        vocabulary: how many tokens there are.
    """

    tokenizer: Any
    prompt: Prompt
    generator: Generator
    defaults: Sampling
    chat: bool
    max_length: int
    vocabulary: int

    @staticmethod
    def of(
        tokenizer: Any, prompt: Prompt, generator: Generator, max_length: int, vocabulary: int, file: Path
    ) -> Reader:
        """Of a task; raises TaskRefused naming `file` where its sections do not fit the model."""
        has_template = bool(generator.chat_template or tokenizer.chat_template)
        chat = has_template if generator.chat is None else generator.chat
        if (generator.chat or generator.system) and not has_template:
            field = "decoder.system" if generator.system else "decoder.chat"
            raise TaskRefused(file, field, "the model has no chat template", "Give one, as decoder.chat_template")
        defaults = generator.sampling
        reader = Reader(tokenizer, prompt, generator, defaults, chat, max_length, vocabulary)
        try:
            empty = reader.tokens("")
        except Exception as error:  # Jinja's, or whatever a template raises on purpose
            problem = f"it cannot be rendered: {error}"
            raise TaskRefused(file, "decoder.chat_template", problem, "Correct it") from None
        if unknown := reader.unknown_in(empty):
            raise TaskRefused(file, "decoder.system", f"system prompt or template hold {unknown}", "Leave it out")
        if len(empty) >= max_length:
            problem = f"system prompt and template fill {len(empty)} of the backbone's {max_length} tokens"
            raise TaskRefused(file, "decoder.system", problem, "Shorten them")
        for field, token in defaults.named_tokens:
            if not 0 <= token < vocabulary:
                problem = f"there is no token {token}: the model has {vocabulary}"
                raise TaskRefused(file, f"decoder.{field}", problem, "Leave it out")
        return reader

    def read(self, request: Request) -> Asked:
        """Raises InvalidRequest that says which field is wrong."""
        text, turns = _text(request), _turns(request)
        if turns is not None and not self.chat:
            raise InvalidRequest(
                f"messages: {request.vfm.name!r} has no chat template, or does not use it. Send text_input, as "
                "fmplex predict does"
            )
        wishes, source = _wishes(request)
        sampling = self.defaults.overridden(wishes, source) if wishes else self.defaults
        for field, token in sampling.named_tokens:
            if not 0 <= token < self.vocabulary:
                raise InvalidRequest(f"{source}.{field}: there is no token {token}: the model has {self.vocabulary}")
        what, size = ("text_input", len(text)) if turns is None else ("messages", sum(map(_size, turns)))
        if size > self.max_length * TOKEN_BYTES:
            raise InvalidRequest(f"{what} has {size} characters, far beyond {self.max_length} tokens: cut it")
        prompt = self.tokens(text) if turns is None else self.conversation(turns)
        room = self.max_length - len(prompt)
        if not prompt:
            raise InvalidRequest(f"{what} holds no tokens: there is nothing to go on from")
        if unknown := self.unknown_in(prompt):
            raise InvalidRequest(f"{what} holds {unknown}: leave it out")
        if room < 1:
            raise InvalidRequest(
                f"{what} and the task's template are {len(prompt)} tokens, the backbone takes {self.max_length} of "
                "prompt and answer together: shorten it"
            )
        if sampling.max_tokens > room and "max_tokens" in wishes:
            raise InvalidRequest(
                f"{source}.max_tokens: {sampling.max_tokens} and the prompt's {len(prompt)} tokens are more than the "
                f"backbone's {self.max_length}: ask for {room} at most"
            )
        if sampling.min_tokens > sampling.max_tokens:
            raise InvalidRequest(f"{source}.min_tokens: {sampling.min_tokens} is more than max_tokens")
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        excluded = _flag(request, EXCLUDE_INPUT.name, default=True)
        if not excluded and turns is not None:
            raise InvalidRequest(f"{EXCLUDE_INPUT.name}: false puts text_input before the answer, and this is a chat")
        echo = "" if excluded else text
        summed = _flag(request, RETURN_CUMULATIVE.name, default=False)
        return Asked(prompt, sampling, _flag(request, STREAM.name, default=False), echo, summed)

    def unknown_in(self, tokens: Sequence[int]) -> str:
        """The first token that the tokenizer has and the model has not, or "".

        One such token in a pass ends it for everybody, and on a GPU the process.
        """
        odd = next((token for token in tokens if token >= self.vocabulary), None)
        return "" if odd is None else f"{self.tokenizer.decode([odd])!r}, a token that the model does not have"

    def tokens(self, text: str) -> list[int]:
        """The prompt of a text."""
        if not self.chat:
            return list(self.tokenizer(self._shown(text))["input_ids"])
        return self.encoded(self.rendered([{"role": USER, "content": text}]))

    def conversation(self, turns: Sequence[Turn]) -> list[int]:
        """The prompt of a conversation; raises InvalidRequest where the chat template refuses it."""
        try:
            return self.encoded(self.rendered(turns))
        except Exception as error:  # Jinja's, or whatever a template raises on purpose
            raise InvalidRequest(f"messages: the chat template does not take them: {error}") from None

    def rendered(self, turns: Sequence[Turn], *, answered: bool = False) -> str:
        """A conversation in the chat template, each user's turn as the task shows a text, after its system prompt.

        Args:
            answered: whether its last turn is an answer; else one is to follow.
        """
        shown = [
            {"role": turn["role"], "content": self._shown(turn["content"]) if turn["role"] == USER else turn["content"]}
            for turn in turns
        ]
        found: str = self.tokenizer.apply_chat_template(
            with_system(shown, self.generator.system),
            chat_template=self.generator.chat_template or None,
            add_generation_prompt=not answered,
            tokenize=False,
        )
        return found

    def _shown(self, text: str) -> str:
        return self.prompt.template.replace("{text}", text)

    def encoded(self, rendered: str) -> list[int]:
        """The tokens of text that a template has made."""
        return list(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])


def _text(request: Request) -> str:
    cells = _cells(request, PROMPT.tensor.name)
    if not cells:
        raise InvalidRequest(f"{request.vfm.name!r} takes the input text_input, one string; the request has none")
    if len(cells) > 1:
        raise InvalidRequest(f"text_input holds {len(cells)} texts: send each as a request of its own")
    return _decoded(cells[0], PROMPT.tensor.name)


def _size(turn: Turn) -> int:
    return len(turn["content"])


def _turns(request: Request) -> list[Turn] | None:
    """What `messages` says, a tensor or a parameter; text_input is empty then."""
    name = MESSAGES.name
    cells = _given(request, name)
    if not cells:
        return None
    if len(cells) > 1:
        raise InvalidRequest(f"{name} is to be one JSON list: send each conversation as a request of its own")
    if _text(request):
        raise InvalidRequest(f"{name} stands in the place of text_input: send an empty one with it")
    return read_turns(_decoded(cells[0], name), name)


def _cells(request: Request, name: str) -> list[Any]:
    value = request.inputs.get(name)
    return [] if value is None else np.asarray(value).reshape(-1).tolist()


def _decoded(cell: Any, name: str) -> str:
    try:
        return cell.decode("utf-8") if isinstance(cell, bytes) else str(cell)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} is not valid UTF-8: {error.reason} at byte {error.start}") from None


def _wishes(request: Request) -> tuple[Mapping[str, Any], str]:
    """What sampling_parameters says, a tensor or a parameter; without it, the request's parameters of these names."""
    name = SAMPLING_PARAMETERS.name
    cells = _given(request, name)
    if not cells:
        own = {key: _listed(value, OPENING.get(key, "[")) for key, value in request.parameters.items() if key in FIELDS}
        return own, "parameters"
    text = _decoded(cells[0], name)
    if len(cells) > 1 or len(text) > MAX_JSON:
        raise InvalidRequest(f"{name} is to be one JSON object of at most {MAX_JSON} characters")
    try:
        document = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidRequest(f'{name} is to be a JSON object such as {{"temperature": 0}}, not {text[:80]!r}')
    return document, name


def _given(request: Request, name: str) -> list[Any]:
    """A tensor's cells, or the parameter in its place."""
    parameter = request.parameters.get(name)
    return _cells(request, name) or ([] if parameter is None else [parameter])


def _listed(value: Any, opening: str) -> Any:
    """A list or an object, where a parameter's text is one in JSON: parameters hold neither."""
    if isinstance(value, str) and value.startswith(opening):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _flag(request: Request, name: str, *, default: bool) -> bool:
    if cells := _cells(request, name):
        return bool(cells[0])
    given = request.parameters.get(name)
    if given is None:
        return default
    found = given if isinstance(given, bool) else WORDS.get(str(given).lower())
    if found is None:
        raise InvalidRequest(f"the parameter {name} is {str(given)[:80]!r}: say true or false")
    return found
