"""The tasks of a Triton server that can be asked over OpenAI's API: those that generate text, and embed texts."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, Literal, Protocol

from fmplex.client.aio import AsyncClient
from fmplex.client.wire import Interface
from fmplex_backend.errors import ServerProblem

READY_S = 5.0
Kind = Literal["text", "vectors", ""]  # what a task answers with; "": what this API has no door for


class Part(Protocol):
    """A part of a generated answer, or all of it."""

    @property
    def text(self) -> str: ...

    @property
    def finish_reason(self) -> str:
        """ "stop" or "length"; "" of a part that is not the last."""

    @property
    def input_tokens(self) -> int:
        """Of the prompt."""

    @property
    def output_tokens(self) -> int:
        """Of this part."""

    @property
    def logprobs(self) -> list[Any] | None: ...


class Tasks(Protocol):
    """What the API asks. Its methods raise FmplexErrors."""

    async def listed(self) -> Sequence[str]:
        """Those that are served, and can be asked here."""

    async def kind(self, task: str) -> Kind:
        """What a task answers with."""

    def generate(
        self, task: str, text: str, parameters: Mapping[str, Any], *, stream: bool
    ) -> AsyncGenerator[Part, None]:
        """The parts of an answer; closing the generator cancels the request.

        Args:
            parameters: of the request: `sampling_parameters`, `messages` and so on.
            stream: parts as they come, else one.
        """

    async def embed(self, task: str, texts: Sequence[str]) -> tuple[list[Sequence[float]], int]:
        """The vector of each text, and the tokens of all."""

    async def ready(self) -> bool:
        """Whether the server answers."""


class TritonTasks:
    """Over gRPC. What fails is not tried again: OpenAI's clients do so themselves.

    Args:
        timeout: seconds, of a request.
    """

    def __init__(self, server: str, timeout: float) -> None:
        self._client = AsyncClient(server, timeout=timeout, retries=0)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def listed(self) -> Sequence[str]:
        told = await self._client.tasks()
        names = sorted(name for name, task in told.items() if task.state.startswith("serving") and not task.members)
        return [name for name in names if await self._listed(name)]

    async def _listed(self, task: str) -> bool:
        try:
            return bool(await self.kind(task))
        except ServerProblem:  # it has just been unloaded
            return False

    async def kind(self, task: str) -> Kind:
        with self._known_anew(task):
            return kind_of(await self._client.interface(task))

    async def generate(
        self, task: str, text: str, parameters: Mapping[str, Any], *, stream: bool
    ) -> AsyncGenerator[Part, None]:
        with self._known_anew(task):
            wishes = {**parameters, "stream": stream}
            async with aclosing(self._client.stream(task, text, parameters=wishes)) as parts:
                async for part in parts:
                    found: Any = part
                    yield found

    async def embed(self, task: str, texts: Sequence[str]) -> tuple[list[Sequence[float]], int]:
        with self._known_anew(task):
            outputs = await self._client.outputs(task, texts)
        tokens = sum(int(each["num_input_tokens"].item()) for each in outputs if "num_input_tokens" in each)
        return [each["EMBEDDING"].tolist() for each in outputs], tokens

    async def ready(self) -> bool:
        return await self._client.ready(timeout=READY_S)

    @contextmanager
    def _known_anew(self, task: str) -> Iterator[None]:
        """After an error, the server is asked again what a task is: it may have become another one."""
        try:
            yield
        except ServerProblem:
            self._client.forget(task)
            raise


def kind_of(task: Interface) -> Kind:
    """By the tensors that its clients see."""
    if task.takes == "text_input" and "text_output" in task.outputs:
        return "text"
    return "vectors" if task.takes == "TEXT" and "EMBEDDING" in task.outputs else ""


def sampling_parameters(sampling: Mapping[str, Any]) -> str:
    """As the backbone reads them."""
    return json.dumps(sampling, ensure_ascii=False)
