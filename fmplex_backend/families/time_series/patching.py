"""How a backbone cuts its context into patches."""

from __future__ import annotations

from typing import NamedTuple


class Patching(NamedTuple):
    """How the backbone cuts its context, in steps."""

    patch: int
    stride: int
    extra: int  # tokens before those of patches
    tokens: int  # all of a channel

    def starts(self, context: int) -> list[int]:
        """Of the patches."""
        count = (context - self.patch) // self.stride + 1
        return [context - self.patch - self.stride * place for place in reversed(range(count))]
