"""A pass of rows through an encoder: from what the backbone takes, and adapters, to what decoders read.

On a CPU a pass is done when `launch` returns. On a GPU it is queued, its results are copied to pinned memory behind it,
and `Launched.hidden` waits for them: the next pass can be prepared meanwhile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from time import thread_time
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.adapters.peft import Adapter
from fmplex_backend.adapters.recorded_lora import RecordedLora
from fmplex_backend.decoders.decoder import TOKENS
from fmplex_backend.families.cuda_graphs import Graphs, Recorder
from fmplex_backend.families.parallel import Parallel
from fmplex_backend.families.payload import RowT
from fmplex_backend.families.recorded import Given, RecordedForward

Kind = TypeVar("Kind", bound=Hashable)  # of passes that share a CUDA graph
Part = tuple[int, int, dict[str, Tensor]]  # first row, row after the last, results by pooling


class Hidden:
    """Hidden states of a pass's rows, as its parts pooled them."""

    def __init__(self, parts: list[Part]) -> None:
        self.rows = [(by_pooling, index - start) for start, end, by_pooling in parts for index in range(start, end)]

    def row(self, index: int, pooling: str, row: Any) -> Any:
        """One row's [h], or [t, h] of its `plain` tokens: float32 numpy."""
        by_pooling, place = self.rows[index]
        if pooling != TOKENS:
            return by_pooling[pooling][place].numpy()
        with torch.inference_mode():
            return by_pooling[pooling][place, row.plain].float().numpy()


@dataclass(frozen=True, slots=True)
class Launched:
    """A pass whose results are there, or on their way."""

    parts: list[Part]
    done: torch.cuda.Event | None  # of a GPU: its results are there
    worked: float | None  # seconds of a core

    def hidden(self) -> Hidden:
        """The results, once they are there."""
        if self.done is not None:
            self.done.synchronize()
        return Hidden(self.parts)


class CapturedPass(ABC, Generic[RowT]):
    """The CUDA graph of one kind of pass. A subclass has the tensors that it reads; its last step is `self.record`."""

    graph: torch.cuda.CUDAGraph
    states: Tensor  # [n, t, h]
    pooled: dict[str, Tensor]

    def __init__(self, forward: EncoderForward[RowT, Any]) -> None:
        self.forward = forward

    def record(self, recorder: Recorder) -> None:
        """Capture `body`."""
        self.graph, (self.states, self.pooled) = recorder.record(self.body)

    @abstractmethod
    def body(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Its states, and what each pooling makes of them."""

    @abstractmethod
    def fill(self, rows: Sequence[RowT], adapters: Sequence[Adapter | None]) -> None:
        """Copy rows into the tensors that the graph reads; those after the last are of no consequence."""

    def launch(self, rows: Sequence[RowT], adapters: Sequence[Adapter | None], poolings: set[str]) -> dict[str, Tensor]:
        """Start a pass of up to as many rows as the kind has."""
        with torch.inference_mode():
            self.fill(rows, adapters)
            self.graph.replay()
            results = {TOKENS: self.states, **self.pooled}
            return {kind: self.forward.fetched(results[kind][: len(rows)]) for kind in poolings}


class EncoderForward(ABC, Generic[RowT, Kind]):
    """Runs passes on one device. The engine thread."""

    recorded: RecordedForward | None = None
    lora: RecordedLora  # what it takes, where there is one

    def __init__(self, model: nn.Module, bank: AdapterBank, *, graphs: bool = True) -> None:
        self.model: Any = model
        self.bank = bank
        self.device = bank.device
        self.on_gpu = self.device.type == "cuda"
        self.parallel = Parallel(1 if self.on_gpu else torch.get_num_threads())
        self.graphs: Graphs[Kind, CapturedPass[RowT]] | None = None
        if self.on_gpu and graphs:
            recorder = Recorder(self.device)
            self.graphs = Graphs(lambda kind: self.capture(kind, recorder))
            self._generation = bank.generation

    @abstractmethod
    def pooled(self, rows: Sequence[RowT], poolings: set[str]) -> dict[str, Tensor]:
        """Run rows, with the adapters that the bank applies: [n, h] by pooling, float32, or [n, t, h] for TOKENS."""

    @abstractmethod
    def kind_of(self, rows: Sequence[RowT], buckets: tuple[int, ...]) -> Kind | None:
        """Which CUDA graph the rows may run as; None: as none.

        Args:
            buckets: the ranks of LoRA that take part, see `AdapterBank`.
        """

    @abstractmethod
    def capture(self, kind: Kind, recorder: Recorder) -> CapturedPass[RowT]:
        """The CUDA graph of passes of a kind."""

    def launch(self, rows: Sequence[RowT], adapters: Sequence[Adapter | None], poolings: set[str]) -> Launched:
        """Start a pass of n rows of up to t tokens."""
        start = thread_time()
        if captured := self._captured(rows, adapters):
            parts = [(0, len(rows), captured.launch(rows, adapters, poolings))]
        else:

            def part(start: int, end: int) -> dict[str, Tensor]:
                with self.bank.applied(adapters[start:end]):
                    return self.pooled(rows[start:end], poolings)

            parts = self.parallel.map(part, len(rows), len(rows) * max(row.length for row in rows))
        if not self.on_gpu:
            return Launched(parts, None, thread_time() - start)
        done = torch.cuda.Event()
        done.record()
        return Launched(parts, done, None)

    def record(self, recorded: RecordedForward, unread: Collection[str] = ()) -> None:
        """Run passes by recordings from now on, where there are such; the bank has no adapters yet.

        Args:
            unread: modules whose output nobody reads.
        """
        self.recorded, self.lora = recorded, RecordedLora(self.bank, recorded.adaptable, unread)

    def by_recording(self, way: bool, shape: Sequence[int], given: Given) -> Any | None:
        """What a recording makes, with the adapters that the bank applies; None where there is none that does.

        Args:
            way: which one, see `RecordedForward`.
            shape: rows, and tokens of a row.
        """
        rows, tokens = shape
        adapted = not self.bank.applies_none
        if self.recorded is None or not self.recorded.runs(way, tokens, adapted=adapted):
            return None
        if not adapted:
            return self.recorded.run(way, given)
        lora = self.lora.of_pass(rows, tokens)
        return None if lora is None else self.recorded.run(way, given, lora)

    def fetched(self, result: Tensor) -> Tensor:
        """On the CPU; from a GPU it is there once an event recorded after this has happened."""
        if not self.on_gpu:
            return result
        return torch.empty(result.shape, dtype=result.dtype, pin_memory=True).copy_(result, non_blocking=True)

    def _captured(self, rows: Sequence[RowT], adapters: Sequence[Adapter | None]) -> CapturedPass[RowT] | None:
        if self.graphs is None:
            return None
        if self._generation != self.bank.generation:
            self._generation = self.bank.generation
            self.graphs.clear()
        if any(adapter is not None and not adapter.batched for adapter in adapters):
            return None
        buckets = {adapter.bucket for adapter in adapters if adapter is not None}
        kind = self.kind_of(rows, tuple(sorted(buckets)))
        return None if kind is None else self.graphs.find(kind)


class SlotTable:
    """The slots of a captured pass's rows, on the device: `by_bucket` is what the graph reads.

    Args:
        buckets: the ranks of LoRA that take part, see `AdapterBank`.
    """

    def __init__(self, buckets: Sequence[int], rows: int, device: torch.device) -> None:
        self.buckets, self.rows = buckets, rows
        self._slots = torch.zeros((len(buckets), rows), dtype=torch.int64, device=device)
        self.by_bucket = dict(zip(buckets, self._slots, strict=True))

    def fill(self, adapters: Sequence[Adapter | None]) -> None:
        """Of the first rows; those after the last have no adapter."""
        if self.buckets:
            host = torch.tensor(list(slots_of(adapters, self.buckets, self.rows).values()), dtype=torch.int64)
            self._slots.copy_(host.pin_memory() if self._slots.is_cuda else host, non_blocking=True)


def slots_of(adapters: Sequence[Adapter | None], buckets: Sequence[int], count: int) -> dict[int, list[int]]:
    """By bucket, the slot of each of `count` rows: 0 for those without an adapter of the bucket, and after the last."""
    slots = {bucket: [0] * count for bucket in buckets}
    for position, adapter in enumerate(adapters):
        if adapter is not None:
            slots[adapter.bucket][position] = adapter.slot
    return slots


def rounded_up(value: int, *steps: tuple[int, int]) -> int:
    """To a multiple of the step of the first limit that holds it, of (limit, step); beyond all limits of the last."""
    step = next((step for limit, step in steps if value <= limit), steps[-1][1])
    return -(-value // step) * step


def rounded_rows(rows: int, max_items: int) -> int:
    """Rows of passes that share a CUDA graph, at most Bmax."""
    return min(rounded_up(rows, (2, 1), (8, 4), (64, 8)), max(max_items, rows))
