"""A pass of clips through an audio encoder; those of a pass may be of several lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.adapters.peft import Adapter
from fmplex_backend.families.audio_encoder.preprocessing import FRAMES, Frames
from fmplex_backend.families.audio_encoder.whisper import encoder_states, kept
from fmplex_backend.families.cuda_graphs import Recorder
from fmplex_backend.families.forward import CapturedPass, EncoderForward, SlotTable, rounded_rows, rounded_up
from fmplex_backend.families.pooling import pool

POOLINGS = ("max", "mean")  # there is no class token
GRAPH_TOKENS = 16384  # larger passes keep the device busy while Python launches their kernels


class PassKind(NamedTuple):
    """Passes that share a CUDA graph: theirs are rounded up to `rows` and `longest`."""

    rows: int
    longest: int  # tokens
    buckets: tuple[int, ...]  # the ranks of LoRA that take part, see `AdapterBank`


class Forward(EncoderForward[Frames, PassKind]):
    """Runs passes on one device. The engine thread."""

    def __init__(self, model: nn.Module, bank: AdapterBank, max_items: int, *, graphs: bool = True) -> None:
        super().__init__(model, bank, graphs=graphs)
        self.max_items, self.bins = max_items, self.model.config.num_mel_bins
        self.window = self.model.config.max_source_positions

    def stacked(self, rows: Sequence[Frames], longest: int) -> Tensor:
        """[n, bins, 2t], on the host; zeros after a row's end."""
        shape = (len(rows), self.bins, FRAMES * longest)
        host = torch.zeros(shape, dtype=torch.float32, pin_memory=self.on_gpu)
        table = host.numpy()
        for position, row in enumerate(rows):
            table[position, :, : FRAMES * row.length] = row.values
        return host

    def pooled(self, rows: Sequence[Frames], poolings: set[str]) -> dict[str, Tensor]:
        longest = max(row.length for row in rows)
        host, sizes = self.stacked(rows, longest), self._sizes(rows)
        with torch.inference_mode():
            features = host.to(self.device, self.model.dtype, non_blocking=True)
            # Attention sees the silence after a clip (`lengths`), pooling does not (`own`).
            own, lengths = sizes.to(self.device, non_blocking=True)
            padded = any(row.length < longest for row in rows)
            given = (features, lengths) if padded else (features,)
            states = self.by_recording(padded, (len(rows), longest), given)
            if states is None:
                states = encoder_states(self.model, *given)
            mask = kept(own, longest)
            return {kind: self.fetched(pool(kind, states, mask)) for kind in poolings}

    def kind_of(self, rows: Sequence[Frames], buckets: tuple[int, ...]) -> PassKind | None:
        count = rounded_rows(len(rows), self.max_items)
        longest = min(self.window, rounded_up(max(row.length for row in rows), (256, 16), (1024, 64), (1 << 20, 128)))
        return PassKind(count, longest, buckets) if count * longest <= GRAPH_TOKENS else None

    def capture(self, kind: PassKind, recorder: Recorder) -> CapturedPass[Frames]:
        return CapturedFrames(self, kind, recorder)

    def _sizes(self, rows: Sequence[Frames]) -> Tensor:
        """[2, n]: tokens of the clips themselves, and in all."""
        return torch.tensor([[row.own for row in rows], [row.length for row in rows]], pin_memory=self.on_gpu)


class CapturedFrames(CapturedPass[Frames]):
    """The CUDA graph of one kind of pass."""

    def __init__(self, forward: Forward, kind: PassKind, recorder: Recorder) -> None:
        super().__init__(forward)
        self.passes, self.kind = forward, kind
        shape, device = (kind.rows, forward.bins, FRAMES * kind.longest), forward.device
        self.features = torch.zeros(shape, device=device)
        self.sizes = torch.ones((2, kind.rows), dtype=torch.int64, device=device)
        self.slots = SlotTable(kind.buckets, kind.rows, forward.device)
        self.record(recorder)

    def body(self) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.inference_mode(), self.forward.bank.applied_by_slots(self.slots.by_bucket, self.kind.rows):
            own, lengths = self.sizes
            states = encoder_states(self.passes.model, self.features.to(self.passes.model.dtype), lengths)
            mask = kept(own, self.kind.longest)
            return states, {kind: pool(kind, states, mask) for kind in POOLINGS}

    def fill(self, rows: Sequence[Frames], adapters: Sequence[Adapter | None]) -> None:
        """Rows after the last keep what was there, without an adapter: nobody reads their results."""
        self.features[: len(rows)].copy_(self.passes.stacked(rows, self.kind.longest), non_blocking=True)
        self.sizes[:, : len(rows)].copy_(self.passes._sizes(rows), non_blocking=True)
        self.slots.fill(adapters)
