"""Answers that are kept in memory, for tasks whose entry says `cache`.

    Intake -> find -> Replies, where the answer is kept
                   -> Preparation -> Engine -> Replies -> keep

An answer is found by a request whose inputs and parameters are the same in every byte: the key holds them, so that no
two requests are taken for each other. It belongs to the extensions that made it, as they were loaded: a new version, a
rollback or a changed task.json has extensions of its own.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Hashable, Mapping
from itertools import count
from typing import Any

import numpy as np
from cachetools import LRUCache

from fmplex_backend.error_status import STATUS_IN_ERRORS
from fmplex_backend.serving.memory import bytes_of
from fmplex_backend.types import Request

OVERHEAD = 1200  # bytes of an entry beside the contents of its tensors: two or three arrays, its key, its place
# Parameters that say how a request is served, and not what is answered.
OF_SERVING = ("slo_ms", STATUS_IN_ERRORS)

Tensors = Mapping[str, Any]
Key = tuple[int, Hashable]  # the number of the extensions, and what is asked of them


class AnswerCache:
    """The answers of a backbone's tasks; those that were asked for the longest time ago go first. Any thread.

    Args:
        most_bytes: that keys and answers may take together.
    """

    def __init__(self, most_bytes: int) -> None:
        self._kept: LRUCache[Key, tuple[Tensors, int]] = LRUCache(most_bytes, getsizeof=lambda kept: kept[1])
        self._lock = threading.Lock()
        self._numbers = count()
        # By id, the extensions whose answers are kept, and their number. While they are here no others have their id.
        self._open: dict[int, tuple[Any, int]] = {}

    @property
    def bytes(self) -> int:
        """That keys and answers take."""
        return int(self._kept.currsize)

    @property
    def answers(self) -> int:
        """How many are kept, some of them perhaps of former versions."""
        return len(self._kept)

    def open(self, extensions: Any) -> None:
        """Keep the answers of these extensions from now on."""
        with self._lock:
            if id(extensions) not in self._open:
                self._open[id(extensions)] = extensions, next(self._numbers)

    def close(self, extensions: Any) -> None:
        """Keep no more answers of these extensions, and find none: those that are here go as room is needed."""
        with self._lock:
            self._open.pop(id(extensions), None)

    def find(self, request: Request) -> Tensors | None:
        """The answer to a request by the present extensions of its vFM; None where none is kept."""
        vfm = request.vfm
        if (number := self._number(vfm.extensions)) is None:
            return None
        key = number, _asked(request)
        with self._lock:
            tensors, _ = self._kept.get(key, (None, 0))
        if tensors is None or not all(name in tensors for name in request.requested_outputs):
            vfm.intake.add(cache_misses=1)
            return None
        vfm.intake.add(cache_hits=1)
        return tensors

    def keep(self, request: Request, tensors: Tensors) -> None:
        """Keep the whole answer to a request, which is one of the extensions it was prepared for."""
        if self._number(request.extensions) is None:
            return
        copies = {name: np.array(tensor) for name, tensor in tensors.items()}  # views would keep whole batches
        size = OVERHEAD + request.input_bytes + sum(map(bytes_of, copies.values()))
        asked = _asked(request)
        with self._lock:
            number = self._number(request.extensions)
            if number is not None and size <= self._kept.maxsize:
                self._kept[number, asked] = copies, size

    def _number(self, extensions: Any) -> int | None:
        _, number = self._open.get(id(extensions), (None, None))
        return number


def _asked(request: Request) -> Hashable:
    """All that the answer of its task depends on."""
    wishes = {name: value for name, value in request.parameters.items() if name not in OF_SERVING}
    inputs = tuple((name, *_content(array)) for name, array in sorted(request.inputs.items()))
    return inputs, json.dumps(wishes, sort_keys=True) if wishes else ""  # in Python 1, 1.0 and True are equal


def _content(array: Any) -> tuple[str, tuple[int, ...], Hashable]:
    own = tuple(array.ravel().tolist()) if array.dtype.hasobject else array.tobytes()
    return array.dtype.str, array.shape, own
