"""Which LoRA adapters are in the bank, where all of them together take more than a budget.

Those that are not lie in a file: what was read, checked and scaled when their version was loaded, as it was then,
whatever has become of the version's own files. One is read as soon as a request for it is queued, that of the vFM with
the smallest start tag (`Vfm.start`, the fair queueing's) first, on a thread of its own, and put into the bank between
two batches: all that were read together take a few milliseconds there, and go on after the next batch.
Its requests wait meanwhile (`is_ready`), and nobody else's. The adapter that was used the longest ago makes room, of
those whose vFMs have nothing queued where there are such. One with requests that have begun stays; where there are no
others, the one whose vFM is furthest ahead of its share, further than who waits, takes no new requests until the last
has ended.

Copies of requests, on vFMs with `spare` set, run in time that nobody else wants: adapters are read for them last, they
evict none whose vFM has requests queued, and theirs may be evicted between two steps of a copy.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import monotonic
from types import MappingProxyType

from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.adapters.peft import Adapter, KeptWeights, LoraWeights
from fmplex_backend.adapters.weight_file import WeightFile
from fmplex_backend.errors import ExecutionFailed, TaskRefused
from fmplex_backend.types import RESIDENT, Failed, Metric, Pass, Post, Reading, Request, Vfm

log = logging.getLogger("fmplex")

CHUNK_S = 0.004  # of putting adapters into the bank, between two batches
FRESH_S = 1.0  # after it was put in, while an adapter is not evicted unless a request with it begins sooner
RETRY_S = 5.0  # after this time one is read again that could not be
METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        RESIDENT: Metric("gauge", "1 where a vFM's LoRA is in memory, 0 where it is in its file"),
        "fmplex_backbone_adapter_bytes": Metric("gauge", "Bytes of LoRA adapters in memory, without a GPU's padding"),
        "fmplex_backbone_adapters_resident": Metric("gauge", "LoRA adapters in memory"),
        "fmplex_backbone_adapter_loads_total": Metric("counter", "LoRA adapters that came back from their files"),
        "fmplex_backbone_adapter_load_seconds_total": Metric("counter", "Seconds from asking for these to having them"),
        "fmplex_backbone_adapter_evictions_total": Metric("counter", "LoRA adapters that made room for another"),
    }
)


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
        self._read_in: deque[tuple[Adapter, KeptWeights, Iterator[None]]] = deque()  # and not yet whole in the bank
        self._broken: dict[Adapter, float] = {}  # until then they are not read again
        self._begun: dict[Request, Adapter] = {}  # requests that have run, or are about to, and have no outcome
        self._in_batch: set[Request] = set()  # of these, those in the batch that is put together, or runs
        self._batch_closed = False  # it was handed to `run`: the next `is_ready` begins a new one
        self._leaving: Adapter | None = None  # takes no new requests
        self._file = WeightFile()
        self._reader = ThreadPoolExecutor(1, "fmplex-adapters") if budget else None

    # -- any thread

    def keep(self, adapter: Adapter, file: Path) -> None:
        """Write the weights of an adapter that was just read where they can be read again; raises TaskRefused."""
        if not self.budget or not adapter.batched:
            return
        size = sum(pair.a.nbytes + pair.b.nbytes for pair in adapter.lora.values())
        if size > self.budget:
            problem = f"its weights take {size} bytes, the backbone's adapter_memory is {self.budget}"
            raise TaskRefused(file, "r", problem, "Raise adapter_memory in the backbone's config.pbtxt")
        try:
            adapter.kept = self._file.keep(adapter.lora)
        except OSError as error:
            problem = f"the backbone has adapter_memory, and its weights cannot be written to a temporary file: {error}"
            raise TaskRefused(
                file, "", problem, "Make room there, or start the server with TMPDIR naming a directory that has"
            ) from error

    def expect(self, request: Request) -> None:
        """A request will be queued: read its adapter now, unless it is a copy, which has time."""
        adapter: Adapter | None = request.extensions.adapter
        if adapter is None or adapter.kept is None or request.vfm.spare:
            return
        adapter.asked_by = request.vfm
        if adapter not in self._resident:
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
        if kept is not None and self.used + kept.bytes > self.budget:
            adapter.lora.clear()
            return
        try:
            self.bank.attach(adapter)
        except BaseException:
            adapter.kept = None  # its vFM is refused: it is not to be read for it
            raise
        if kept is not None:
            self.used += kept.bytes
            self._resident[adapter] = None

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
            self.bank.drop_unused()
        adapter.kept = None
        self._make_room()

    def is_ready(self, request: Request) -> bool:
        """Whether a request may be in the batch: its adapter is in the bank, it has none, or it could not be read.

        Else the adapter is asked for. The first call after `run` begins a new batch.
        """
        if self._batch_closed:
            self._in_batch.clear()
            self._batch_closed = False
        adapter: Adapter | None = request.extensions.adapter
        if adapter is None or adapter.kept is None:
            return True
        if adapter in self._resident:
            return adapter is not self._leaving or request in self._begun
        if self.is_lost(request):
            return True  # so that it gets into a batch, and `run` fails it
        if not request.vfm.spare or adapter.asked_by is None:
            adapter.asked_by = request.vfm
        self._want(adapter)
        if adapter in self._wanted and not request.vfm.spare:
            self._let_leave(request.vfm)
        return False

    def is_lost(self, request: Request) -> bool:
        """Whether a request's adapter could not be brought back just now."""
        return self._is_away(request.extensions.adapter) and self._is_broken(request.extensions.adapter)

    def begin(self, request: Request) -> None:
        """A request is in the next batch: until its end its adapter stays, a copy's until the batch has run."""
        adapter = request.extensions.adapter
        if adapter in self._resident:
            self._begun[request] = adapter
            self._in_batch.add(request)
            self._fresh.pop(adapter, None)
            if not request.vfm.spare:
                self._resident.move_to_end(adapter)

    def run(self, batch: Sequence[Request]) -> tuple[list[Request], Pass | None]:
        """Those of a batch that runs now whose adapters are in memory, and what the others get, if there are any."""
        self._batch_closed = True
        away = [request for request in batch if self._is_away(request.extensions.adapter)]
        if not away:
            return list(batch), None
        kept_out = set(away)
        return [request for request in batch if request not in kept_out], Pass(
            None, [], [(request, Failed(_not_in_memory(request.vfm))) for request in away]
        )

    def end(self, request: Request) -> None:
        """A request has its outcome."""
        self._in_batch.discard(request)
        self._begun.pop(request, None)
        if self._wanted:  # also where one that waited was dropped: nobody need leave for it
            self._make_room()

    def _is_away(self, adapter: Adapter | None) -> bool:
        return adapter is not None and adapter.kept is not None and adapter not in self._resident

    def _is_broken(self, adapter: Adapter) -> bool:
        return self._broken.get(adapter, -math.inf) > self.clock()

    def _want(self, adapter: Adapter) -> None:
        if self._is_away(adapter) and adapter not in self._loading and not self._is_broken(adapter):
            self._wanted.setdefault(adapter, self.clock())
            self._make_room()

    def _make_room(self) -> None:
        """Read those that are wanted, by the tags of their vFMs, as far as there is room."""
        for adapter in [each for each in self._wanted if not _is_waited_for(each)]:
            del self._wanted[adapter]  # its requests were refused, cancelled or late; those to come will ask
        while self._wanted:
            adapter = min(self._wanted, key=_turn)
            kept = adapter.kept
            assert kept is not None
            if self.used + kept.bytes > self.budget and not self._evict_for(adapter, kept.bytes):
                if _is_spare(adapter):  # so are all that are wanted: for copies nobody is kept from beginning
                    self._leaving = None
                return
            self._loading[adapter] = self._wanted.pop(adapter)
            self.used += kept.bytes
            assert self._reader is not None
            self._reader.submit(self._read, adapter, kept)
        self._leaving = None

    def _evict_for(self, wanting: Adapter, size: int) -> bool:
        """Take out those that were used the longest ago, until so many bytes are free; False where too few may go.

        Those that may are out then all the same, so that room collects; but not for copies.
        """
        spare, now = _is_spare(wanting), self.clock()
        stay = {
            adapter
            for request, adapter in self._begun.items()
            if spare or not request.vfm.spare or request in self._in_batch
        }
        fresh = (adapter for adapter, until in self._fresh.items() if until > now)
        stay.update(adapter for adapter in fresh if spare or not _is_spare(adapter))
        leave = [each for each in self._resident if each not in stay and not _goes_before(each, wanting)]
        leave.sort(key=_eviction_order)
        if spare and self.used + size - sum(each.kept.bytes for each in leave if each.kept) > self.budget:
            return False
        for adapter in leave:
            assert adapter.kept is not None
            self._take_out(adapter, adapter.kept)
            self.evictions += 1
            if self.used + size <= self.budget:
                return True
        return False

    def _let_leave(self, vfm: Vfm) -> None:
        """Let nothing begin with the adapter of the vFM furthest ahead, if that is further ahead than who waits.

        Copies' adapters go without that.
        """
        begun = (request for request in self._begun if not request.vfm.spare)
        ahead = max(begun, key=_start_tag, default=None)
        if self._leaving is None and ahead is not None and ahead.vfm.start > vfm.start:
            self._leaving = self._begun[ahead]

    def _take_out(self, adapter: Adapter, kept: KeptWeights) -> None:
        self.bank.detach(adapter)
        self.used -= kept.bytes
        del self._resident[adapter]
        self._fresh.pop(adapter, None)
        for request in [each for each, own in self._begun.items() if own is adapter and each.vfm.spare]:
            del self._begun[request]  # its next step begins as its first did
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
        if adapter not in self._loading:  # it is gone
            return
        adapter.lora = weights
        self._read_in.append((adapter, kept, self.bank.attaching(adapter)))
        if len(self._read_in) == 1:
            self.post(self._put)  # not at once: others that were read during the same batch are told of next

    def _put(self) -> None:
        """Put what was read into the bank, in the order of reading, until its time between two batches is over."""
        until = self.clock() + CHUNK_S
        while self._read_in and self._is_put(*self._read_in[0], until):
            self._read_in.popleft()
        if self._read_in:
            self.post(self._put)

    def _is_put(self, adapter: Adapter, kept: KeptWeights, parts: Iterator[None], until: float) -> bool:
        """Go on with an adapter; False where its time was over before its end. One that is gone or fails has ended."""
        if adapter not in self._loading:
            parts.close()  # type: ignore[attr-defined]
            adapter.lora.clear()  # also where it had not begun
            return True
        try:
            for _ in parts:
                if self.clock() > until:
                    return False
        except Exception as error:
            self._fail(adapter, kept, error)
            return True
        self.load_s += self.clock() - self._loading.pop(adapter)
        self.loads += 1
        # Only now: the evicted one may have been the last of this one's bucket, whose stack is used again.
        self.bank.drop_unused()
        self._resident[adapter] = None
        self._fresh[adapter] = self.clock() + FRESH_S
        return True

    def _fail(self, adapter: Adapter, kept: KeptWeights, error: Exception) -> None:
        log.error("the weights of an adapter cannot be brought back into memory", exc_info=error)
        if self._loading.pop(adapter, None) is not None:
            self.used -= kept.bytes
            self._broken[adapter] = self.clock() + RETRY_S


def _start_tag(request: Request) -> float:
    return request.vfm.start


def _is_spare(adapter: Adapter) -> bool:
    return adapter.asked_by is not None and adapter.asked_by.spare


def _has_requests(adapter: Adapter) -> bool:
    """Whether its vFM has some waiting; of copies that is not known."""
    return adapter.asked_by is not None and adapter.asked_by.depth > 0


def _goes_before(adapter: Adapter, wanting: Adapter) -> bool:
    """Whether requests that wait for something else, such as KV blocks, keep an adapter that is in memory there.

    Who is behind in service runs first: its adapter would only be read again.
    """
    return _has_requests(adapter) and (_is_spare(wanting) or _turn(adapter) < _turn(wanting))


def _eviction_order(adapter: Adapter) -> float:
    """Those without requests first, of the others those whose vFMs are furthest ahead."""
    vfm = adapter.asked_by
    return -vfm.start if vfm is not None and vfm.depth > 0 else -math.inf


def _is_waited_for(adapter: Adapter) -> bool:
    return _is_spare(adapter) or _has_requests(adapter)


def _turn(adapter: Adapter) -> tuple[bool, float]:
    """The smallest is read first."""
    vfm = adapter.asked_by
    assert vfm is not None
    return vfm.spare, vfm.start


def _not_in_memory(vfm: Vfm) -> ExecutionFailed:
    return ExecutionFailed(
        f"the weights of the adapter of {vfm.name!r} could not be brought back into memory, and the server's log says "
        "why; they are read again in some seconds"
    )
