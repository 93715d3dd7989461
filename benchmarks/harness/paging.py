"""Steps of a model whose adapters do not all fit, in a process of its own: `python -m benchmarks.harness.paging`.

The engine, the scheduler and the runtime of the backend on one core, as `generating` has them. What brings adapters
back is done between two steps, by commands that the engine is posted: their time is what a step is late by.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.harness.generating import OneCore, Ours, set_up_on_one_core
from benchmarks.harness.language_model import Ask


@dataclass
class Steps:
    """Of one round, in seconds.

    Args:
        steps: what each step took, paging included.
        paging: what bringing adapters back took before each of them, and where nothing could run.
        loads: adapters that came back.
        generated: tokens that were asked for.
        seconds: from the first step to the last.
    """

    steps: list[float] = field(default_factory=list)
    paging: list[float] = field(default_factory=list)
    loads: int = 0
    generated: int = 0
    seconds: float = 0.0


class Paging(OneCore):
    """The process."""

    module = "benchmarks.harness.paging"

    def __init__(self, repository: Path) -> None:
        super().__init__(repository=str(repository))

    def run(self, asks: Sequence[Ask]) -> Steps:
        """Generate all of them, in the order that the scheduler takes."""
        return Steps(**self.ask({"asks": [asdict(ask) for ask in asks]}))


# -- in the process


class Paged(Ours):
    """An engine, stepped by hand, that times what it is posted."""

    def __init__(self, repository: Path) -> None:
        super().__init__(repository)
        self._paging_s = 0.0
        post = self.runtime.post
        self.runtime.post = lambda command: post(lambda: self._timed(command))

    def run(self, asks: Sequence[Ask]) -> Steps:
        """One round."""
        seen, loads = Steps(), self.runtime.residency.loads
        self.engine.add_requests([self._request(ask) for ask in asks])
        start = time.perf_counter()
        while self._step(seen) or self.engine.scheduler.queued:
            pass
        seen.seconds = time.perf_counter() - start
        seen.loads = self.runtime.residency.loads - loads
        seen.generated = sum(ask.tokens for ask in asks)
        return seen

    def _step(self, seen: Steps) -> bool:
        self._paging_s, start = 0.0, time.perf_counter()
        has_run = self.engine.step(wait=bool(self.engine.scheduler.queued))
        if has_run:
            seen.steps.append(time.perf_counter() - start)
        seen.paging.append(self._paging_s)
        return has_run

    def _timed(self, command: Callable[[], None]) -> None:
        start = time.perf_counter()
        command()
        self._paging_s += time.perf_counter() - start


def main() -> None:
    """Answer every line of stdin with a round's steps."""
    paged = Paged(Path(set_up_on_one_core()["repository"]))
    print(0, flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(paged.run([Ask(**ask) for ask in json.loads(line)["asks"]]))), flush=True)


if __name__ == "__main__":
    main()
