"""A pass of rows of tokens through a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.adapters.peft import Adapter
from fmplex_backend.families.cuda_graphs import Recorder
from fmplex_backend.families.forward import CapturedPass, EncoderForward, rounded_rows, rounded_up, slots_of
from fmplex_backend.families.pooling import POOLINGS, pool
from fmplex_backend.families.text_encoder import attention
from fmplex_backend.families.text_encoder.attention import unpadded
from fmplex_backend.families.text_encoder.tokenizer import Tokens

GRAPH_TOKENS = 16384  # larger passes keep the device busy while Python launches their kernels


class PassKind(NamedTuple):
    """Passes that share a CUDA graph: theirs are rounded up to `rows` and `longest`."""

    rows: int
    longest: int
    padded: bool  # some rows are shorter: attention needs a mask
    buckets: tuple[int, ...]  # the ranks of LoRA that take part, see `AdapterBank`


class Forward(EncoderForward[Tokens, PassKind]):
    """Runs passes on one device. The engine thread."""

    def __init__(self, model: nn.Module, bank: AdapterBank, pad: int, max_items: int, *, graphs: bool = True) -> None:
        super().__init__(model, bank, graphs=graphs)
        self.pad, self.max_items = pad, max_items
        self.takes_unpadded = self.model.config._attn_implementation == attention.NAME

    def pass_of(self, tokens: Tensor, vectors: Tensor | None, mask: Tensor | None) -> Tensor:
        """[n, t] ids or [n, t, width] vectors, and a mask [n, t] of what is no padding -> states [n, t, h]."""
        name, given = ("input_ids", tokens) if vectors is None else ("inputs_embeds", vectors)
        if mask is not None:
            states: Tensor = self.model(**{name: given}, attention_mask=mask.long()).last_hidden_state
        elif self.takes_unpadded:
            ones = torch.ones(given.shape[:2], dtype=torch.int64, device=self.device)
            with unpadded():
                states = self.model(**{name: given}, attention_mask=ones).last_hidden_state
        else:  # with no mask, attention takes its faster path
            states = self.model(**{name: given}).last_hidden_state
        return states

    def kind_of(self, rows: Sequence[Tokens], buckets: tuple[int, ...]) -> PassKind | None:
        lengths = [len(row.ids) for row in rows]
        count, longest = rounded_rows(len(rows), self.max_items), rounded_up(max(lengths), (256, 16), (1024, 32))
        if count * longest > GRAPH_TOKENS or any(row.vectors is not None for row in rows):
            return None
        return PassKind(count, longest, min(lengths) < longest or len(rows) < count, buckets)

    def capture(self, kind: PassKind, recorder: Recorder) -> CapturedPass[Tokens]:
        return CapturedTokens(self, kind, recorder)

    def pooled(self, rows: Sequence[Tokens], poolings: set[str]) -> dict[str, Tensor]:
        ids = [row.ids for row in rows]
        longest = max(map(len, ids))
        padded = any(len(row) < longest for row in ids)
        host = torch.full((len(ids), longest), self.pad, dtype=torch.int64, pin_memory=self.on_gpu)
        table = host.numpy()
        for position, row in enumerate(ids):
            table[position, : len(row)] = row
        with torch.inference_mode():
            tokens = host.to(self.device, non_blocking=True)  # [n, t]
            mask = None
            if padded:
                lengths = torch.tensor([len(row) for row in ids], pin_memory=self.on_gpu)
                mask = torch.arange(longest, device=self.device) < lengths.to(self.device, non_blocking=True)[:, None]
            vectors = self._embedded(tokens, rows) if any(row.vectors is not None for row in rows) else None
            given = (tokens,) if mask is None else (tokens, mask)
            states = self.by_recording(mask is not None, tokens.shape, given) if vectors is None else None
            if states is None:
                states = self.pass_of(tokens, vectors, mask)
            return {kind: self.fetched(pool(kind, states, mask)) for kind in poolings}

    def _embedded(self, tokens: Tensor, rows: Sequence[Tokens]) -> Tensor:
        """[n, t] ids -> input embeddings [n, t, width], where an encoder's vectors replace those of placeholders."""
        vectors: Tensor = self.model.get_input_embeddings()(tokens)
        for position, row in enumerate(rows):
            if row.vectors is not None:
                vectors[position, : len(row.vectors)] = torch.from_numpy(row.vectors).to(vectors)
        return vectors


class CapturedTokens(CapturedPass[Tokens]):
    """The CUDA graph of one kind of pass. Its inputs lie in one buffer, so that one copy fills them."""

    def __init__(self, forward: Forward, kind: PassKind, recorder: Recorder) -> None:
        super().__init__(forward)
        self.passes, self.kind = forward, kind
        sizes = [kind.rows * kind.longest, *[kind.rows] * (1 + len(kind.buckets))]
        self.inputs = torch.zeros(sum(sizes), dtype=torch.int64, device=forward.device)
        ids, lengths, *slots = torch.split(self.inputs, sizes)
        self.ids = ids.view(kind.rows, kind.longest)
        self.lengths = lengths.fill_(1)
        self.slots = dict(zip(kind.buckets, slots, strict=True))  # by bucket: [rows]
        self.record(recorder)

    def body(self) -> tuple[Tensor, dict[str, Tensor]]:
        mask = None
        with torch.inference_mode(), self.forward.bank.applied_by_slots(self.slots, self.kind.rows):
            if self.kind.padded:
                mask = torch.arange(self.kind.longest, device=self.ids.device) < self.lengths[:, None]
            states = self.passes.pass_of(self.ids, None, mask)
            return states, {kind: pool(kind, states, mask) for kind in POOLINGS}

    def fill(self, rows: Sequence[Tokens], adapters: Sequence[Adapter | None]) -> None:
        """With rows of padding (one token long, no adapter) after the last."""
        count, longest = self.kind.rows, self.kind.longest
        ids = np.full((count, longest), self.passes.pad, dtype=np.int64)
        lengths = np.ones(count, dtype=np.int64)
        for position, row in enumerate(rows):
            ids[position, : len(row.ids)] = row.ids
            lengths[position] = len(row.ids)
        slots = slots_of(adapters, self.kind.buckets, count).values()
        host = torch.empty(len(self.inputs), dtype=torch.int64, pin_memory=self.forward.on_gpu)
        host.numpy()[:] = np.concatenate([ids.ravel(), lengths, *slots])
        self.inputs.copy_(host, non_blocking=True)
