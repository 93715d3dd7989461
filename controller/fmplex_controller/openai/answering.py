"""What the doors that generate text have in common: a whole answer, or a stream of its parts, in the door's shape."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from fmplex_controller.openai.generating import Counts, Question, generated
from fmplex_controller.openai.problems import ApiProblem
from fmplex_controller.openai.requests import Asked
from fmplex_controller.openai.tasks import Part, Tasks
from fmplex_controller.openai.wire import events, unless_gone

Parts = AsyncGenerator[tuple[int, Part], None]


@dataclass(slots=True)
class Choice:
    """One of the answers, whole."""

    text: str = ""
    finish_reason: str = ""
    logprobs: list[Any] | None = None

    def add(self, part: Part) -> None:
        """A part of it."""
        self.text += part.text
        self.finish_reason = part.finish_reason or self.finish_reason
        if part.logprobs is not None:
            self.logprobs = [*(self.logprobs or []), *part.logprobs]


@dataclass
class Answering(ABC):
    """One request's answer, in the shape of a door."""

    prefix: ClassVar[str]  # of its id
    whole: ClassVar[str]  # what an answer is called
    chunk: ClassVar[str]  # what a part of one is called

    asked: Asked
    questions: Sequence[Question]
    id: str = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        self.id, self.created = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time())
        self.counts = Counts(self.asked.choices)

    # -- the door's

    @abstractmethod
    def choice(self, place: int, answer: Choice) -> dict[str, Any]:
        """A whole answer."""

    @abstractmethod
    def delta(self, place: int, part: Part) -> dict[str, Any]:
        """A part of one."""

    def opening(self, place: int) -> dict[str, Any] | None:
        """What an answer's stream begins with, where it has such a thing."""
        return None

    # -- both doors'

    async def respond(self, request: Request, tasks: Tasks) -> Response:
        """Ask, and answer; raises ApiProblem, FmplexErrors and ClientGone."""
        if await tasks.kind(self.asked.model) != "text":
            problem = f"{self.asked.model} does not generate text. GET /v1/models lists the tasks that do, or embed"
            raise ApiProblem(400, problem, param="model")
        parts = generated(tasks, self.asked, self.questions, self.asked.sampling())
        if not self.asked.stream:
            return JSONResponse(await unless_gone(request, self._all(parts)))
        # What is wrong with a request comes in the place of its first part, and then has a status of its own.
        first = await unless_gone(request, _first(parts))
        return events(self._stream(first, parts), self.asked.model)

    async def _all(self, parts: Parts) -> dict[str, Any]:
        answers = [Choice() for _ in range(len(self.questions) * self.asked.choices)]
        async for place, part in parts:
            self.counts.add(place, part)
            answers[place].add(part)
        choices = [self.choice(place, answer) for place, answer in enumerate(answers)]
        return self._document(self.whole, choices) | {"usage": self.counts.usage}

    async def _stream(self, first: tuple[int, Part], parts: Parts) -> AsyncGenerator[dict[str, Any], None]:
        usage = {"usage": None} if self.asked.tells_usage else {}
        try:
            for place in range(len(self.questions) * self.asked.choices):
                if (opening := self.opening(place)) is not None:
                    yield self._document(self.chunk, [opening]) | usage
            yield self._part(*first) | usage
            async for place, part in parts:
                yield self._part(place, part) | usage
            if usage:
                yield self._document(self.chunk, []) | {"usage": self.counts.usage}
        finally:
            await parts.aclose()

    def _part(self, place: int, part: Part) -> dict[str, Any]:
        self.counts.add(place, part)
        return self._document(self.chunk, [self.delta(place, part)])

    def _document(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.asked.model,
            "system_fingerprint": None,
            "choices": choices,
        }


async def _first(parts: Parts) -> tuple[int, Part]:
    return await anext(parts)
