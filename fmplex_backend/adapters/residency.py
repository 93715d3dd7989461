"""Which LoRA adapters are in the bank, where all of them together take more than a budget.

Those that are not lie in files: what was read, checked and scaled when their version was loaded, as it was then,
whatever has become of the version's own files. One is read as soon as a request for it is queued, on a thread of its
own, and put into the bank between two batches, a few milliseconds at a time. Its requests wait meanwhile (`is_ready`),
and nobody else's. The adapter that was used the longest ago makes room. One with requests that have begun stays; where
there are no others, the one whose vFM is furthest ahead of its share, further than who waits, takes no new requests
until the last has ended.
"""

from __future__ import annotations

import logging
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import IO

import torch
from safetensors.torch import load, save

from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.adapters.peft import Adapter, KeptWeights, LoraWeights
from fmplex_backend.errors import TaskRefused
from fmplex_backend.types import RESIDENT, Metric, Post, Reading, Request, Vfm

log = logging.getLogger("fmplex")

CHUNK_S = 0.004  # of putting an adapter into the bank, between two batches
FRESH_S = 1.0  # so long one that was read stays for the requests it was read for
RETRY_S = 5.0  # after this time one is read again that could not be
METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        RESIDENT: Metric("gauge", "1 where a vFM's LoRA is in memory, 0 where it is in its file"),
        "fmplex_backbone_adapter_bytes": Metric("gauge", "Bytes of LoRA adapters in memory"),
        "fmplex_backbone_adapters_resident": Metric("gauge", "LoRA adapters in memory"),
        "fmplex_backbone_adapter_loads_total": Metric("counter", "LoRA adapters that came back from their files"),
        "fmplex_backbone_adapter_load_seconds_total": Metric("counter", "Seconds from asking for these to having them"),
        "fmplex_backbone_adapter_evictions_total": Metric("counter", "LoRA adapters that made room for another"),
    }
)


class WeightFile:
    """An adapter's weights as they were loaded, in a file without a name: it goes with this object."""

    def __init__(self, lora: Mapping[str, LoraWeights]) -> None:
        self.bytes = sum(pair.a.nbytes + pair.b.nbytes for pair in lora.values())
        tensors = {f"{path}.{part}": getattr(pair, part).cpu() for path, pair in lora.items() for part in ("a", "b")}
        self._paths = list(lora)
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="fmplex-adapter-")  # noqa: SIM115 - as long as its task
        self._file.write(save(tensors))
        self._file.flush()

    def read(self, device: torch.device) -> dict[str, LoraWeights]:
        """On a device. One thread at a time."""
        self._file.seek(0)
        tensors = load(self._file.read())
        return {
            path: LoraWeights(tensors[f"{path}.a"].to(device), tensors[f"{path}.b"].to(device)) for path in self._paths
        }

    def __del__(self) -> None:
        self._file.close()


class Residency:
    """The engine thread's, but for `keep`, `expect` and `readings`.

    Args:
        budget: bytes that adapters may take in the bank together; 0: as many as there are.
        post: lets the engine call a function between two batches.
    """

    def __init__(self, bank: AdapterBank, budget: int, post: Post, clock: Callable[[], float] = monotonic) -> None:
        self.bank, self.budget, self.post, self.clock = bank, budget, post, clock
        self.used = 0
        self.loads = self.evictions = 0
        self.load_s = 0.0
        self._resident: OrderedDict[Adapter, None] = OrderedDict()  # used the longest ago first
        self._fresh: dict[Adapter, float] = {}  # until then they wait for their requests
        self._wanted: OrderedDict[Adapter, float] = OrderedDict()  # since when
        self._loading: dict[Adapter, float] = {}
        self._broken: dict[Adapter, float] = {}  # until then they are not read again
        self._begun: dict[Request, Adapter] = {}  # requests that have run, or are about to, and have no outcome
        self._leaving: Adapter | None = None  # takes no new requests
        self._reader = ThreadPoolExecutor(1, "fmplex-adapters") if budget else None

    # -- any thread

    def keep(self, adapter: Adapter, file: Path) -> None:
        """Write the weights of an adapter that was just read where they can be read again; raises TaskRefused."""
        if not self.budget or not adapter.batched:
            return
        kept = WeightFile(adapter.lora)
        if kept.bytes > self.budget:
            problem = f"its weights take {kept.bytes} bytes, the backbone's adapter_memory is {self.budget}"
            raise TaskRefused(file, "r", problem, "Raise adapter_memory in the backbone's config.pbtxt")
        adapter.kept = kept

    def expect(self, adapter: Adapter | None) -> None:
        """A request of an adapter will be queued: read it now."""
        if adapter is not None and adapter.kept is not None and adapter not in self._resident:
            self.post(partial(self._want, adapter))

    def readings(self, vfm: Vfm | None) -> Iterator[Reading]:
        """Of a vFM or of the backbone; none without a budget."""
        if not self.budget:
            return
        if vfm is not None:
            adapter = getattr(vfm.extensions, "adapter", None)
            if adapter is not None and adapter.kept is not None:
                yield Reading(RESIDENT, float(adapter in self._resident))
            return
        yield Reading("fmplex_backbone_adapter_bytes", self.used)
        yield Reading("fmplex_backbone_adapters_resident", len(self._resident))
        yield Reading("fmplex_backbone_adapter_loads_total", self.loads)
        yield Reading("fmplex_backbone_adapter_load_seconds_total", self.load_s)
        yield Reading("fmplex_backbone_adapter_evictions_total", self.evictions)

    # -- the engine thread

    def attach(self, adapter: Adapter) -> None:
        """Put an adapter into the bank, if there is room: nobody makes room for one that nobody has asked for."""
        kept = adapter.kept
        if kept is None:
            self.bank.attach(adapter)
        elif self.used + kept.bytes <= self.budget:
            self.bank.attach(adapter)
            self.used += kept.bytes
            self._resident[adapter] = None
        else:
            adapter.lora.clear()

    def detach(self, adapter: Adapter) -> None:
        """Take an adapter out for good."""
        kept = adapter.kept
        if kept is None:
            self.bank.detach(adapter)
            return
        self._wanted.pop(adapter, None)
        self._broken.pop(adapter, None)
        if self._loading.pop(adapter, None) is not None:  # `_put` finds out
            self.used -= kept.bytes
        if adapter in self._resident:
            self._take_out(adapter, kept)
        adapter.kept = None
        self._make_room()

    def is_ready(self, request: Request) -> bool:
        """Whether a request's adapter is in the bank, or needs not be; else it will be."""
        adapter = request.extensions.adapter
        if adapter is None or adapter.kept is None:
            return True
        if adapter in self._resident:
            return adapter is not self._leaving or request in self._begun
        if adapter in self._broken and self.clock() < self._broken[adapter]:
            return True  # the pass tells that it is not there
        self._want(adapter)
        if adapter in self._wanted and not request.vfm.spare:
            self._let_leave(request.vfm)
        return False

    def begin(self, request: Request) -> None:
        """A request is in the next batch: until its end its adapter stays."""
        adapter = request.extensions.adapter
        if adapter in self._resident:
            self._begun[request] = adapter
            self._resident.move_to_end(adapter)
            self._fresh.pop(adapter, None)

    def end(self, request: Request) -> None:
        """A request has its outcome."""
        if self._begun.pop(request, None) is not None and self._wanted:
            self._make_room()

    def _want(self, adapter: Adapter) -> None:
        if adapter.kept is not None and adapter not in self._resident and adapter not in self._loading:
            self._wanted.setdefault(adapter, self.clock())
            self._make_room()

    def _make_room(self) -> None:
        """Read those that are wanted, the first first, as far as there is room."""
        while self._wanted:
            adapter, since = next(iter(self._wanted.items()))
            kept = adapter.kept
            assert kept is not None
            if self.used + kept.bytes > self.budget and not self._evict_for(kept.bytes):
                return
            del self._wanted[adapter]
            self._loading[adapter] = since
            self.used += kept.bytes
            assert self._reader is not None
            self._reader.submit(self._read, adapter, kept)
        self._leaving = None

    def _evict_for(self, wanted: int) -> bool:
        """Take out those that were used the longest ago, until so many bytes are free; False where too few may go."""
        begun, now = set(self._begun.values()), self.clock()
        for adapter in list(self._resident):
            if adapter in begun or self._fresh.get(adapter, now) > now:
                continue
            assert adapter.kept is not None
            self._take_out(adapter, adapter.kept)
            self.evictions += 1
            if self.used + wanted <= self.budget:
                return True
        return False

    def _let_leave(self, vfm: Vfm) -> None:
        """Let nothing begin with the adapter of the vFM furthest ahead, if that is further ahead than who waits."""
        ahead = max(self._begun, key=_ahead, default=None)
        if self._leaving is None and ahead is not None and ahead.vfm.start > vfm.start:
            self._leaving = self._begun[ahead]

    def _take_out(self, adapter: Adapter, kept: KeptWeights) -> None:
        self.bank.detach(adapter)
        self.used -= kept.bytes
        del self._resident[adapter]
        self._fresh.pop(adapter, None)
        if adapter is self._leaving:
            self._leaving = None

    def _read(self, adapter: Adapter, kept: KeptWeights) -> None:
        """The reader's thread."""
        try:
            weights = kept.read(self.bank.device)
        except Exception as error:  # of the disk, or of the device's memory: its requests are told
            self.post(partial(self._fail, adapter, kept, error))
            return
        self.post(partial(self._begin_to_put, adapter, kept, weights))

    def _begin_to_put(self, adapter: Adapter, kept: KeptWeights, weights: dict[str, LoraWeights]) -> None:
        if adapter in self._loading:  # else it is gone
            adapter.lora = weights
            self._put(adapter, kept, self.bank.attaching(adapter))

    def _put(self, adapter: Adapter, kept: KeptWeights, parts: Iterator[None]) -> None:
        if adapter not in self._loading:
            parts.close()  # type: ignore[attr-defined]
            return
        until = monotonic() + CHUNK_S
        try:
            for _ in parts:
                if monotonic() > until:
                    self.post(partial(self._put, adapter, kept, parts))
                    return
        except Exception as error:
            self._fail(adapter, kept, error)
            return
        self.load_s += self.clock() - self._loading.pop(adapter)
        self.loads += 1
        self._resident[adapter] = None
        self._fresh[adapter] = self.clock() + FRESH_S

    def _fail(self, adapter: Adapter, kept: KeptWeights, error: Exception) -> None:
        log.error("the weights of an adapter cannot be brought back into memory", exc_info=error)
        if self._loading.pop(adapter, None) is not None:
            self.used -= kept.bytes
            self._broken[adapter] = self.clock() + RETRY_S


def _ahead(request: Request) -> float:
    return request.vfm.start
