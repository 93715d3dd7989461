"""A whole backbone with no server around it and no model in it, and a gate that holds its engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backend_fixtures import BACKBONE, Caller, TextStandIn

from fmplex_backend.repository.parameters import BackboneConfig
from fmplex_backend.serving.service import Service
from fmplex_backend.serving.tags import Models
from fmplex_backend.types import Failed, Reply


def no_time(seconds: float) -> None:
    """A pass takes none."""


class Gate:
    """Holds the engine in its pass until it is let on."""

    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self._open = threading.Semaphore(0)
        self._free = threading.Event()

    def __call__(self, seconds: float) -> None:
        self.reached.release()
        if not self._free.is_set():
            self._open.acquire(timeout=20)

    def wait(self) -> None:
        """Until the engine is in a pass."""
        assert self.reached.acquire(timeout=20)

    def step(self) -> None:
        """Let one pass go on."""
        self._open.release()

    def free(self) -> None:
        """Let all go on."""
        self._free.set()
        self._open.release()


class ServiceRig:
    """A service over the fake runtime."""

    def __init__(
        self,
        root: Path,
        sleep: Callable[[float], None] = no_time,
        *,
        max_items: int = 8,
        models: Models | None = None,
        **config: Any,
    ) -> None:
        self.root, self.caller = root, Caller()
        self.exits: list[int] = []
        self.exited = threading.Event()
        self.service = Service(
            root,
            BACKBONE,
            BackboneConfig(model="none", **config),
            max_items,
            lambda cost: TextStandIn(sleep=sleep),
            self._exit,
            models,
        )
        self.service.loader.tasks.grace = self.service.loader.tags.grace = 0.0

    def _exit(self, code: int) -> None:
        self.exits.append(code)
        self.exited.set()

    def submit(self, *tags: int, text: str = "some words", **options: Any) -> int:
        """A call; its number."""
        self.service.submit(self.caller.call(tags, text, **options))
        return len(self.caller.replies) - 1

    def ask(self, *tags: int, text: str = "some words", **options: Any) -> Reply:
        """A call and its reply."""
        number = self.submit(*tags, text=text, **options)
        self.caller.wait()
        return self.caller.only(number)

    def failure(self, *tags: int, text: str = "some words", **options: Any) -> tuple[str, str]:
        """Code and message of a call that fails."""
        self.ask(*tags, text=text, **options)
        return self.caller.failure()

    def failure_now(self, *tags: int) -> tuple[str, str]:
        """Of a call that is answered before `submit` returns."""
        self.submit(*tags)
        return self.caller.failure()

    def codes(self) -> list[str]:
        """Of all replies, one per call; empty where it is an answer."""
        replies = [self.caller.only(number) for number in range(len(self.caller.replies))]
        return [reply.error.code if isinstance(reply, Failed) else "" for reply in replies]

    def stop(self) -> None:
        self.service.stop()
        assert all(len(replies) == 1 for replies in self.caller.replies)


def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came")
