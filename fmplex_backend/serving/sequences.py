"""Requests between two of their steps, and the former extensions that stay attached for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fmplex_backend.types import Request


class Sequences:
    """A request is answered by one version as a whole: what it began with stays attached until it is done.

    Args:
        detach: frees extensions.
    """

    def __init__(self, detach: Callable[[Any], None]) -> None:
        self._detach = detach
        self._begun: dict[Request, None] = {}
        self._former: list[Any] = []  # to be detached

    def __contains__(self, request: Request) -> bool:
        return request in self._begun

    def add(self, request: Request) -> None:
        """The request has run a step and goes on."""
        self._begun[request] = None

    def remove(self, request: Request) -> None:
        """The request is done, or dropped; nothing where it has run no step."""
        if self._begun.pop(request, request) is None and self._former:
            self._detach_former()

    def release(self, extensions: Any) -> None:
        """Detach extensions that no vFM serves with any more, as soon as no request needs them."""
        self._former.append(extensions)
        self._detach_former()

    def _detach_former(self) -> None:
        needed = {id(request.extensions) for request in self._begun}
        free = [each for each in self._former if id(each) not in needed]
        self._former = [each for each in self._former if id(each) in needed]
        for each in free:
            self._detach(each)
