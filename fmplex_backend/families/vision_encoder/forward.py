"""A pass of pictures through a vision encoder; all of a pass are of one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.adapters.peft import Adapter
from fmplex_backend.families.cuda_graphs import Recorder
from fmplex_backend.families.forward import CapturedPass, EncoderForward, SlotTable, rounded_rows
from fmplex_backend.families.pooling import POOLINGS
from fmplex_backend.families.vision_encoder.anatomy import Anatomy, States, read
from fmplex_backend.families.vision_encoder.preprocessing import Pixels, Preprocessor

GRAPH_TOKENS = 16384  # larger passes keep the device busy while Python launches their kernels


class PassKind(NamedTuple):
    """Passes that share a CUDA graph: theirs are rounded up to `rows`."""

    rows: int
    shape: tuple[int, int, int]  # of a picture
    dtype: str
    buckets: tuple[int, ...]  # the ranks of LoRA that take part, see `AdapterBank`


class Forward(EncoderForward[Pixels, PassKind]):
    """Runs passes on one device. The engine thread."""

    def __init__(
        self,
        model: nn.Module,
        bank: AdapterBank,
        anatomy: Anatomy,
        preprocessor: Preprocessor,
        max_items: int,
        *,
        graphs: bool = True,
    ) -> None:
        super().__init__(model, bank, graphs=graphs)
        self.anatomy, self.preprocessor, self.max_items = anatomy, preprocessor, max_items
        self.poolings = [kind for kind in POOLINGS if kind != "cls" or anatomy.has_summary]

    def states(self, values: Tensor) -> States:
        """[n, 3, h, w] of `Pixels.values`, on the device."""
        return self.anatomy.states(self.model, self.preprocessor.normalised(values, self.model.dtype))

    def stacked(self, rows: Sequence[Pixels]) -> Tensor:
        """[n, 3, h, w], on the host."""
        first = rows[0]
        dtype = torch.uint8 if first.dtype == "uint8" else torch.float32
        host = torch.empty((len(rows), *first.shape), dtype=dtype, pin_memory=self.on_gpu)
        table = host.numpy()
        for position, row in enumerate(rows):
            table[position] = row.values
        return host

    def pooled(self, rows: Sequence[Pixels], poolings: set[str]) -> dict[str, Tensor]:
        host = self.stacked(rows)
        with torch.inference_mode():
            states = self.states(host.to(self.device, non_blocking=True))
            return {kind: self.fetched(read(kind, states)) for kind in poolings}

    def kind_of(self, rows: Sequence[Pixels], buckets: tuple[int, ...]) -> PassKind | None:
        count = rounded_rows(len(rows), self.max_items)
        if count * rows[0].length > GRAPH_TOKENS:
            return None
        return PassKind(count, rows[0].shape, rows[0].dtype, buckets)

    def capture(self, kind: PassKind, recorder: Recorder) -> CapturedPass[Pixels]:
        return CapturedPixels(self, kind, recorder)


class CapturedPixels(CapturedPass[Pixels]):
    """The CUDA graph of one kind of pass."""

    def __init__(self, forward: Forward, kind: PassKind, recorder: Recorder) -> None:
        super().__init__(forward)
        self.passes, self.kind = forward, kind
        dtype = torch.uint8 if kind.dtype == "uint8" else torch.float32
        self.pixels = torch.zeros((kind.rows, *kind.shape), dtype=dtype, device=forward.device)
        self.slots = SlotTable(kind.buckets, kind.rows, forward.device)
        self.record(recorder)

    def body(self) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.inference_mode(), self.forward.bank.applied_by_slots(self.slots.by_bucket, self.kind.rows):
            states = self.passes.states(self.pixels)
            return states.patches, {kind: read(kind, states) for kind in self.passes.poolings}

    def fill(self, rows: Sequence[Pixels], adapters: Sequence[Adapter | None]) -> None:
        """Rows after the last keep what was there, without an adapter: nobody reads their results."""
        self.pixels[: len(rows)].copy_(self.passes.stacked(rows), non_blocking=True)
        self.slots.fill(adapters)
