"""/v1/completions: a prompt is shown to the model as the task shows its texts, as over Triton's own interface."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from pydantic import Field

from fmplex_controller.openai.answering import Answering, Choice
from fmplex_controller.openai.generating import Question
from fmplex_controller.openai.logprobs import of_completion
from fmplex_controller.openai.problems import of_field
from fmplex_controller.openai.requests import MAX_BEST, MAX_CHOICES, Asked, Texts, parsed
from fmplex_controller.openai.tasks import Part


class CompletionRequest(Asked):
    """The body."""

    prompt: Annotated[Texts, Field(max_length=MAX_CHOICES)]
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_BEST)] | None = None
    best_of: int | None = None

    def sampling(self) -> dict[str, Any]:
        return super().sampling() | ({} if self.logprobs is None else {"logprobs": self.logprobs})


def completion(body: bytes) -> CompletionAnswering:
    """What a request asks; raises ApiProblem."""
    asked = parsed(CompletionRequest, body)
    asked.check()
    if asked.best_of is not None and asked.best_of != asked.choices:
        raise of_field("best_of", "more answers than n are not made to choose from: leave it out")
    if asked.echo and asked.logprobs is not None:
        raise of_field("echo", "a prompt's own logprobs are not told: leave one of the two out")
    parameters = {"exclude_input_in_output": not asked.echo}
    return CompletionAnswering(asked, [Question(prompt, parameters) for prompt in asked.prompt])


class CompletionAnswering(Answering):
    """Its answer."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"
    asked: CompletionRequest

    def __post_init__(self) -> None:
        super().__post_init__()
        self._told: Counter[int] = Counter()  # characters of each choice's tokens that were told

    def choice(self, place: int, answer: Choice) -> dict[str, Any]:
        return self._choice(place, answer.text, answer.logprobs, answer.finish_reason)

    def delta(self, place: int, part: Part) -> dict[str, Any]:
        return self._choice(place, part.text, part.logprobs, part.finish_reason or None)

    def _choice(self, place: int, text: str, told: Any, finish_reason: str | None) -> dict[str, Any]:
        logprobs = of_completion(told, self.asked.logprobs or 0, self._told[place])
        self._told[place] += sum(map(len, logprobs["tokens"])) if logprobs else 0
        return {"index": place, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
