"""A pass of series through a time-series backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.adapters.peft import Adapter
from fmplex_backend.families.cuda_graphs import Recorder
from fmplex_backend.families.forward import CapturedPass, EncoderForward, SlotTable, rounded_rows
from fmplex_backend.families.pooling import POOLINGS
from fmplex_backend.families.time_series.anatomy import Anatomy, States
from fmplex_backend.families.time_series.architectures import PATCHES
from fmplex_backend.families.time_series.preprocessing import Context

GRAPH_TOKENS = 16384  # larger passes keep the device busy while Python launches their kernels


class PassKind(NamedTuple):
    """Passes that share a CUDA graph: theirs are rounded up to `rows`."""

    rows: int
    buckets: tuple[int, ...]  # the ranks of LoRA that take part, see `AdapterBank`


class Forward(EncoderForward[Context, PassKind]):
    """Runs passes on one device. The engine thread."""

    def __init__(
        self, model: nn.Module, bank: AdapterBank, anatomy: Anatomy, max_items: int, *, graphs: bool = True
    ) -> None:
        super().__init__(model, bank, graphs=graphs)
        self.anatomy, self.max_items = anatomy, max_items
        self.reads = [PATCHES, *(kind for kind in POOLINGS if kind != "cls" or anatomy.extra)]

    def states(self, packed: Tensor) -> States:
        """[2, n, steps, channels] of `packed`, on the device."""
        return self.anatomy.states(self.model, packed[0], packed[1] > 0)

    def packed(self, rows: Sequence[Context], *, whole: bool = False) -> Tensor:
        """Values, and 1 where they were observed: [2, n, steps, channels] on the host.

        Args:
            whole: all of the context, also where the model takes shorter ones and the rows are shorter.
        """
        steps = self.anatomy.context if whole else self.anatomy.steps_of(max(row.length for row in rows))
        host = torch.empty((2, len(rows), steps, rows[0].values.shape[1]), pin_memory=self.on_gpu)
        table = host.numpy()
        np.stack([row.values[-steps:] for row in rows], out=table[0])
        np.stack([row.observed[-steps:] for row in rows], out=table[1], casting="unsafe")
        return host

    def pooled(self, rows: Sequence[Context], poolings: set[str]) -> dict[str, Tensor]:
        host = self.packed(rows)
        shape = len(rows), max(row.length for row in rows) // self.anatomy.channels
        with torch.inference_mode():
            packed = host.to(self.device, non_blocking=True)
            made = self.by_recording(False, shape, (packed,))
            states = self.states(packed) if made is None else States(*made)
            return {kind: self.fetched(self.anatomy.read(kind, states)) for kind in poolings}

    def kind_of(self, rows: Sequence[Context], buckets: tuple[int, ...]) -> PassKind | None:
        count = rounded_rows(len(rows), self.max_items)
        return None if count * self.anatomy.tokens > GRAPH_TOKENS else PassKind(count, buckets)

    def capture(self, kind: PassKind, recorder: Recorder) -> CapturedPass[Context]:
        return CapturedSeries(self, kind, recorder)


class CapturedSeries(CapturedPass[Context]):
    """The CUDA graph of one kind of pass."""

    def __init__(self, forward: Forward, kind: PassKind, recorder: Recorder) -> None:
        super().__init__(forward)
        self.passes, self.kind = forward, kind
        anatomy = forward.anatomy
        self.inputs = torch.ones((2, kind.rows, anatomy.context, anatomy.channels), device=forward.device)
        self.slots = SlotTable(kind.buckets, kind.rows, forward.device)
        self.record(recorder)

    def body(self) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.inference_mode(), self.forward.bank.applied_by_slots(self.slots.by_bucket, self.kind.rows):
            states = self.passes.states(self.inputs)
            return states.tokens, {kind: self.passes.anatomy.read(kind, states) for kind in self.passes.reads}

    def fill(self, rows: Sequence[Context], adapters: Sequence[Adapter | None]) -> None:
        """Rows after the last keep what was there, without an adapter: nobody reads their results."""
        self.inputs[:, : len(rows)].copy_(self.passes.packed(rows, whole=True), non_blocking=True)
        self.slots.fill(adapters)
