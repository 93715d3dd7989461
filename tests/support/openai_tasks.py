"""A server behind OpenAI's API that only remembers: what it was asked, and answers as it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from fmplex_backend.errors import ServerProblem
from fmplex_controller.openai.app import make_app
from fmplex_controller.openai.options import OpenAiOptions
from fmplex_controller.openai.tasks import Kind, Tasks

KINDS: dict[str, Kind] = {"chat": "text", "vectors": "vectors", "topic": ""}


@dataclass(frozen=True)
class Said:
    """A part of an answer."""

    text: str
    finish_reason: str = ""
    input_tokens: int = 7
    output_tokens: int = 1
    logprobs: list[Any] | None = None


def told(*tokens: tuple[str, float]) -> dict[str, Any]:
    """A token's logarithmic probability, and others', as a backbone tells them; the first one is the token."""
    ranked = sorted(tokens, key=lambda each: -each[1])
    return {
        str(number): {"logprob": value, "rank": 1 + ranked.index((text, value)), "decoded_token": text}
        for number, (text, value) in enumerate(tokens)
    }


@dataclass
class FakeTasks:
    """`parts` are every answer's; None in them waits for good, an exception is raised."""

    parts: Sequence[Said | Exception | None] = (Said("Hel"), Said("lo", "stop"))
    asked: list[tuple[str, str, dict[str, Any], bool]] = field(default_factory=list)
    closed: int = 0  # answers that were not read to their end
    opened: int = 0

    async def listed(self) -> Sequence[str]:
        return [name for name, kind in KINDS.items() if kind]

    async def kind(self, task: str) -> Kind:
        if task not in KINDS:
            raise ServerProblem(f"Request for unknown model: '{task}' is not found", "NOT_FOUND")
        return KINDS[task]

    async def generate(
        self, task: str, text: str, parameters: Mapping[str, Any], *, stream: bool
    ) -> AsyncGenerator[Said, None]:
        self.asked.append((task, text, dict(parameters), stream))
        self.opened += 1
        ended = False
        try:
            for part in self.parts:
                if isinstance(part, Exception):
                    raise part
                if part is None:
                    await asyncio.Event().wait()
                else:
                    yield part
            ended = True
        finally:
            self.closed += not ended

    async def embed(self, task: str, texts: Sequence[str]) -> tuple[list[Sequence[float]], int]:
        self.asked.append((task, str(list(texts)), {}, False))
        return [[0.5, -1.25, len(text)] for text in texts], 3 * len(texts)

    async def ready(self) -> bool:
        return bool(self.parts)

    def sampling(self, number: int = -1) -> dict[str, Any]:
        """What a request was sampled with."""
        found: dict[str, Any] = json.loads(self.asked[number][2]["sampling_parameters"])
        return found

    def app(self, keys: Path | None = None, **options: Any) -> FastAPI:
        """The API in front of it."""

        @asynccontextmanager
        async def opened() -> AsyncIterator[Tasks]:
            yield self

        return make_app(opened, OpenAiOptions(keys=keys, **options))
