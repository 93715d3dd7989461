"""The weights of adapters that are not always in memory: in one file without a name, which goes with the process."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import IO

import torch
from safetensors.torch import load, save

from fmplex_backend.adapters.peft import LoraWeights


@dataclass(frozen=True, slots=True)
class _Place:
    start: int
    size: int


class WeightFile:
    """One descriptor, however many adapters. The space of dropped ones is used again; at the end it is cut off.

    Any thread.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None  # made when it is first needed
        self._lock = threading.Lock()  # of what follows
        self._free: list[_Place] = []  # by start; no two of them touch
        self._end = 0
        # A finaliser lets go, maybe in a thread that holds the lock: it only queues here.
        self._let_go: SimpleQueue[_Place] = SimpleQueue()

    def keep(self, lora: Mapping[str, LoraWeights]) -> InFile:
        """Write weights; raises OSError."""
        tensors = {f"{path}.{part}": getattr(pair, part).cpu() for path, pair in lora.items() for part in ("a", "b")}
        data = save(tensors)
        with self._lock:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="fmplex-adapters-", buffering=0)  # noqa: SIM115 - it stays
            descriptor = self._file.fileno()
            self._take_back()
            place = self._place_for(len(data))
        kept = InFile(self, place, list(lora), sum(pair.a.nbytes + pair.b.nbytes for pair in lora.values()))
        written = 0
        while written < len(data):
            written += os.pwrite(descriptor, memoryview(data)[written:], place.start + written)
        return kept

    def read(self, place: _Place) -> bytes:
        """Raises OSError."""
        assert self._file is not None
        data = bytearray()
        while len(data) < place.size:
            more = os.pread(self._file.fileno(), place.size - len(data), place.start + len(data))
            if not more:
                raise OSError("the file with the weights of adapters ends before its end")
            data += more
        return bytes(data)

    def let_go(self, place: _Place) -> None:
        """Let others have a place. May be called anywhere."""
        self._let_go.put(place)

    def _take_back(self) -> None:
        try:
            while True:
                self._free.append(self._let_go.get_nowait())
        except Empty:
            pass
        joined: list[_Place] = []
        for place in sorted(self._free, key=lambda each: each.start):
            if joined and joined[-1].start + joined[-1].size == place.start:
                place = _Place(joined[-1].start, joined.pop().size + place.size)
            joined.append(place)
        if joined and joined[-1].start + joined[-1].size == self._end:
            self._end = joined.pop().start
            assert self._file is not None
            self._file.truncate(self._end)
        self._free = joined

    def _place_for(self, size: int) -> _Place:
        """The smallest free one that is large enough, or the end."""
        fitting = [place for place in self._free if place.size >= size]
        if not fitting:
            self._end += size
            return _Place(self._end - size, size)
        found = min(fitting, key=lambda place: place.size)
        self._free.remove(found)
        if found.size > size:
            self._free.append(_Place(found.start + size, found.size - size))
        return _Place(found.start, size)

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


@dataclass(eq=False)
class InFile:
    """One adapter's weights as they were loaded; its place is free when this object is gone."""

    file: WeightFile
    place: _Place
    paths: list[str] = field(repr=False)
    bytes: int  # in memory

    def read(self, device: torch.device) -> dict[str, LoraWeights]:
        """On a device; raises OSError."""
        tensors = load(self.file.read(self.place))
        return {
            path: LoraWeights(tensors[f"{path}.a"].to(device), tensors[f"{path}.b"].to(device)) for path in self.paths
        }

    def __del__(self) -> None:
        self.file.let_go(self.place)
