"""Load on language-model tasks: streams whose tokens are timed as they come, by FMplex's own client.

In a process of its own, as the load generator: the first line of stdin names its core, every other one is a plan to
answer with an outcome.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.load.child import Child
from fmplex import AsyncClient, Generated, ServerProblem

TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text, the tokens to be generated for it, and in an open loop when it is due: seconds from the start."""

    text: str
    tokens: int
    due: float = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a task is asked: `clients` take the prompts in turn, over and over; without, each is sent when it is due."""

    task: str
    prompts: Sequence[Prompt]
    clients: int = 0


@dataclass(slots=True)
class Tally:
    """What came of a task's requests: those that began, and the tokens that came, in the window."""

    tokens: int = 0
    prompt_tokens: int = 0  # of the answers that began
    requests: int = 0
    answered: int = 0
    first_s: list[float] = field(default_factory=list)  # from due to the first token
    gaps_s: list[float] = field(default_factory=list)  # between a request's parts
    errors: list[str] = field(default_factory=list)

    @property
    def whole(self) -> int:
        """Tokens of answers and of their prompts."""
        return self.tokens + self.prompt_tokens


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """A run: the window begins after `warmup` seconds and lasts `seconds`, for open loops until the last answer."""

    url: str
    loads: Sequence[Load]
    seconds: float
    warmup: float = 1.0


class Streams(Child):
    """The process, idle between plans."""

    module = "benchmarks.load.streams"

    def __init__(self, core: int | None = None) -> None:
        super().__init__({"core": core})

    def run(self, plan: StreamPlan) -> dict[str, Tally]:
        """Generate the load; what came, by task."""
        return {task: Tally(**tally) for task, tally in self.ask(asdict(plan)).items()}

    def good(self, plan: StreamPlan) -> dict[str, Tally]:
        """Likewise; raises where a request failed."""
        tallies = self.run(plan)
        if errors := [error for tally in tallies.values() for error in tally.errors]:
            raise RuntimeError(f"{len(errors)} requests failed: {errors[0]}")
        return tallies


# -- in the process


class _Run:
    """One plan while it runs."""

    def __init__(self, plan: StreamPlan, client: AsyncClient) -> None:
        self.plan, self.client = plan, client
        self.start = time.perf_counter()
        self.begin = self.start + plan.warmup
        self.end = self.begin + plan.seconds
        self.tallies = {load.task: Tally() for load in plan.loads}

    async def run(self) -> None:
        asking: list[Coroutine[Any, Any, None]] = []
        for load in self.plan.loads:
            if load.clients:
                asking += [self._closed(load, load.prompts[number :: load.clients]) for number in range(load.clients)]
            else:
                asking += [self._open(load, prompt) for prompt in load.prompts]
        await asyncio.gather(*asking)

    async def _closed(self, load: Load, prompts: Sequence[Prompt]) -> None:
        number = 0
        while (now := time.perf_counter()) < self.end:
            await self._ask(load.task, prompts[number % len(prompts)], now)
            number += 1

    async def _open(self, load: Load, prompt: Prompt) -> None:
        due = self.begin + prompt.due
        await asyncio.sleep(due - time.perf_counter())
        await self._ask(load.task, prompt, due)

    async def _ask(self, task: str, prompt: Prompt, due: float) -> None:
        tally, before = self.tallies[task], 0.0
        counts = self.begin <= due < self.end
        tally.requests += counts
        wishes = {"temperature": 0, "max_tokens": prompt.tokens, "ignore_eos": True}
        try:
            async for part in self.client.stream(task, prompt.text, timeout=TIMEOUT_S, parameters=wishes):
                assert isinstance(part, Generated)
                now = time.perf_counter()
                if self.begin <= now < self.end or (counts and not self._is_closed):
                    tally.tokens += part.output_tokens
                    tally.prompt_tokens += 0 if before else part.input_tokens
                if counts:
                    (tally.gaps_s if before else tally.first_s).append(now - (before or due))
                before = now
            tally.answered += counts
        except ServerProblem as error:
            tally.errors.append(str(error)[:200])

    @property
    def _is_closed(self) -> bool:
        return all(load.clients for load in self.plan.loads)


async def generate(plan: StreamPlan) -> dict[str, Tally]:
    """Run a plan."""
    async with AsyncClient(plan.url, timeout=TIMEOUT_S) as client:
        run = _Run(plan, client)
        await run.run()
        return run.tallies


def percentile(seconds: Iterable[float], percent: float) -> float:
    """The nearest rank; infinite where there is nothing."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("inf")


def _plan(document: dict[str, Any]) -> StreamPlan:
    loads = [
        Load(load["task"], [Prompt(**prompt) for prompt in load["prompts"]], load["clients"])
        for load in document["loads"]
    ]
    return StreamPlan(document["url"], loads, document["seconds"], document["warmup"])


def main() -> None:
    """Answer every line of stdin."""
    setup = json.loads(sys.stdin.readline())
    if setup["core"] is not None:
        os.sched_setaffinity(0, {setup["core"]})
    print("{}", flush=True)
    for line in sys.stdin:
        tallies = asyncio.run(generate(_plan(json.loads(line))))
        print(json.dumps({task: asdict(tally) for task, tally in tallies.items()}), flush=True)


if __name__ == "__main__":
    main()
