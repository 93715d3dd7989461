"""CUDA graphs of passes, by shape: a pass whose kernels are short otherwise waits for Python to launch them."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch

log = logging.getLogger(__name__)
WARM_UPS = 2  # passes before the capture: libraries choose kernels and take their workspaces in the first ones
CAPTURING = 0.1  # of the time: nothing else runs meanwhile

Shape = TypeVar("Shape", bound=Hashable)
Captured = TypeVar("Captured")
Result = TypeVar("Result")


class Graphs(Generic[Shape, Captured]):
    """The captured passes of a backbone; the least recently used ones are dropped. One thread.

    Args:
        capture: captures a pass of a shape. Where it raises, the backbone has an operation that cannot be captured, and
            nothing is captured from then on.
        after: a shape is captured when it has come up so often: a capture takes as long as dozens of passes.
        most: captured passes that are kept.
        part: the most of the time that is spent on capturing.
        clock: seconds.
    """

    def __init__(
        self,
        capture: Callable[[Shape], Captured],
        *,
        after: int = 3,
        most: int = 128,
        part: float = CAPTURING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.capture, self.after, self.most, self.part, self.clock = capture, after, most, part, clock
        self.usable = True
        self._not_before = clock()  # of the next capture
        self._captured: OrderedDict[Shape, Captured] = OrderedDict()
        self._seen: dict[Shape, int] = {}

    @property
    def captured(self) -> int:
        """How many there are."""
        return len(self._captured)

    def find(self, shape: Shape) -> Captured | None:
        """The captured pass of a shape; None where it is to run without."""
        if not self.usable:
            return None
        if found := self._captured.get(shape):
            self._captured.move_to_end(shape)
            return found
        self._seen[shape] = self._seen.get(shape, 0) + 1
        start = self.clock()
        if self._seen[shape] < self.after or start < self._not_before:
            return None
        try:
            self._captured[shape] = self.capture(shape)
        except torch.OutOfMemoryError:
            log.warning("no memory for a CUDA graph of %s: it runs without", shape)
            self._seen[shape] = -1000 * self.after  # try again, but not soon
            return None
        except Exception as error:
            self.usable = False
            log.warning("no CUDA graphs: capturing a pass raised %s: %s", type(error).__name__, error)
            return None
        finally:
            end = self.clock()
            self._not_before = end + (end - start) * (1 / self.part - 1)
        while len(self._captured) > self.most:
            self._captured.popitem(last=False)
        return self._captured[shape]

    def clear(self) -> None:
        """Drop all of them: tensors that they read are gone."""
        self._captured.clear()


class Recorder:
    """Records functions as CUDA graphs that share one pool of memory, as they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self._pool: Any = None  # a handle

    def record(self, body: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
        """The graph of `body`, which works on tensors that stay, and what it returned: tensors that every replay fills.

        Other threads may use the device meanwhile.
        """
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UPS):
                body()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local"):
            result = body()
        self._pool = graph.pool()
        return graph, result
