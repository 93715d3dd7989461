"""Queues between threads."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")


def drained(queue: SimpleQueue[Item]) -> Iterator[Item]:
    """Take item by item until there is none. Other threads may take and put meanwhile."""
    while True:
        try:
            item = queue.get_nowait()
        except Empty:
            return
        yield item
