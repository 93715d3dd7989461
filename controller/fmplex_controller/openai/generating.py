"""One answer or several, side by side: each is a request of its own to the task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fmplex_controller.openai.problems import of_field
from fmplex_controller.openai.requests import MAX_CHOICES, Asked
from fmplex_controller.openai.tasks import Part, Tasks, sampling_parameters

SEEDS = 1 << 63
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt: a text, or a conversation in the parameters."""

    text: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Counts:
    """Tokens, as they come. A prompt is counted once, however many answers it gets."""

    answers: int  # to each prompt
    prompt: dict[int, int] = field(default_factory=dict)  # by the prompt's place
    completion: int = 0

    def add(self, choice: int, part: Part) -> None:
        """Those of a part."""
        self.prompt[choice // self.answers] = part.input_tokens
        self.completion += part.output_tokens

    @property
    def usage(self) -> dict[str, int]:
        """As OpenAI tells them."""
        prompt = sum(self.prompt.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.completion,
            "total_tokens": prompt + self.completion,
        }


def generated(
    tasks: Tasks, asked: Asked, questions: Sequence[Question], sampling: Mapping[str, Any]
) -> AsyncGenerator[tuple[int, Part], None]:
    """Parts of every choice, with its place, as they come; raises ApiProblem, and FmplexErrors while it is read.

    With a seed, each answer to a prompt has the next one: else they would all be the same.
    """
    if len(questions) * asked.choices > MAX_CHOICES:
        raise of_field("n", f"{asked.choices} answers to {len(questions)} prompts are more than {MAX_CHOICES}")
    streams = []
    for question in questions:
        for number in range(asked.choices):
            own = {**sampling}
            if number and asked.seed is not None:
                own["seed"] = (asked.seed + number + SEEDS) % (2 * SEEDS) - SEEDS
            parameters = {**question.parameters, "sampling_parameters": sampling_parameters(own)}
            streams.append(tasks.generate(asked.model, question.text, parameters, stream=bool(asked.stream)))
    return merged(streams)


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """What each stream yields, with its place. An error of one ends them all, as closing this one does."""
    waiting = {asyncio.ensure_future(_next(stream)): place for place, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=waiting.__getitem__):
                place = waiting.pop(task)
                for part in task.result():
                    yield place, part
                    waiting[asyncio.ensure_future(_next(streams[place]))] = place
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


async def _next(stream: AsyncGenerator[T, None]) -> list[T]:
    """Its next part; none at its end."""
    try:
        return [await anext(stream)]
    except StopAsyncIteration:
        return []
