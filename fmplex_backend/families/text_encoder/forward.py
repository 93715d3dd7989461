"""A pass of rows through a text encoder: from token ids and adapters to what decoders read of the hidden states.

On a CPU a pass is done when `launch` returns. On a GPU it is queued, its results are copied to pinned memory behind it,
and `Launched.hidden` waits for them: the next pass can be prepared meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import thread_time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.adapters.peft import Adapter
from fmplex_backend.decoders.decoder import TOKENS
from fmplex_backend.families.cuda_graphs import Graphs, Recorder
from fmplex_backend.families.parallel import Parallel
from fmplex_backend.families.text_encoder import attention
from fmplex_backend.families.text_encoder.attention import unpadded
from fmplex_backend.families.text_encoder.tokenizer import Tokens

POOLINGS = ("cls", "max", "mean")
GRAPH_TOKENS = 16384  # larger passes keep the device busy while Python launches their kernels


class Hidden:
    """Hidden states of a pass's rows, as its parts pooled them."""

    def __init__(self, parts: list[tuple[int, int, dict[str, Tensor]]]) -> None:
        self.rows = [(by_pooling, index - start) for start, end, by_pooling in parts for index in range(start, end)]

    def row(self, index: int, pooling: str, tokens: Tokens) -> Any:
        """One row's [h], or [t, h] of its plain tokens: float32 numpy."""
        by_pooling, place = self.rows[index]
        if pooling != TOKENS:
            return by_pooling[pooling][place].numpy()
        with torch.inference_mode():
            return by_pooling[pooling][place, tokens.plain].float().numpy()


@dataclass(frozen=True, slots=True)
class Launched:
    """A pass whose results are there, or on their way."""

    parts: list[tuple[int, int, dict[str, Tensor]]]  # first row, row after the last, results by pooling
    done: torch.cuda.Event | None  # of a GPU: its results are there
    worked: float | None  # seconds of a core

    def hidden(self) -> Hidden:
        """The results, once they are there."""
        if self.done is not None:
            self.done.synchronize()
        return Hidden(self.parts)


class PassKind(NamedTuple):
    """Passes that share a CUDA graph: theirs are rounded up to `rows` and `longest`."""

    rows: int
    longest: int
    padded: bool  # some rows are shorter: attention needs a mask
    buckets: tuple[int, ...]  # the ranks of LoRA that take part, see `AdapterBank`


class Forward:
    """Runs passes on one device. The engine thread."""

    def __init__(self, model: nn.Module, bank: AdapterBank, pad: int, max_items: int, *, graphs: bool = True) -> None:
        self.model: Any = model
        self.bank, self.pad, self.max_items = bank, pad, max_items
        self.device = bank.device
        self.on_gpu = self.device.type == "cuda"
        config: Any = model.config
        self.takes_unpadded = config._attn_implementation == attention.NAME
        self.parallel = Parallel(1 if self.on_gpu else torch.get_num_threads())
        self.graphs: Graphs[PassKind, _CapturedPass] | None = None
        if self.on_gpu and graphs:
            recorder = Recorder(self.device)
            self.graphs = Graphs(lambda kind: _CapturedPass(self, kind, recorder))
            self._generation = bank.generation

    def launch(self, rows: list[Tokens], adapters: Sequence[Adapter | None], poolings: set[str]) -> Launched:
        """Start a pass of n rows of up to t tokens."""
        start = thread_time()
        if captured := self._captured(rows, adapters):
            parts = [(0, len(rows), captured.launch(rows, adapters, poolings))]
        else:

            def part(start: int, end: int) -> dict[str, Tensor]:
                with self.bank.applied(adapters[start:end]):
                    return self._states(rows[start:end], poolings)

            parts = self.parallel.map(part, len(rows), len(rows) * max(len(row.ids) for row in rows))
        if not self.on_gpu:
            return Launched(parts, None, thread_time() - start)
        done = torch.cuda.Event()
        done.record()
        return Launched(parts, done, None)

    def fetched(self, result: Tensor) -> Tensor:
        """On the CPU; from a GPU it is there once an event recorded after this has happened."""
        if not self.on_gpu:
            return result
        return torch.empty(result.shape, dtype=result.dtype, pin_memory=True).copy_(result, non_blocking=True)

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

    def _captured(self, rows: list[Tokens], adapters: Sequence[Adapter | None]) -> _CapturedPass | None:
        if self.graphs is None:
            return None
        if self._generation != self.bank.generation:
            self._generation = self.bank.generation
            self.graphs.clear()
        lengths = [len(row.ids) for row in rows]
        kind = PassKind(
            min(_round_up(len(rows), (2, 1), (8, 4), (64, 8)), max(self.max_items, len(rows))),
            _round_up(max(lengths), (256, 16), (1024, 32)),
            False,
            (),
        )
        solo = any(adapter is not None and not adapter.batched for adapter in adapters)
        if solo or kind.rows * kind.longest > GRAPH_TOKENS or any(row.vectors is not None for row in rows):
            return None
        buckets = {adapter.bucket for adapter in adapters if adapter is not None}
        padded = min(lengths) < kind.longest or len(rows) < kind.rows
        return self.graphs.find(kind._replace(padded=padded, buckets=tuple(sorted(buckets))))

    def _states(self, rows: list[Tokens], poolings: set[str]) -> dict[str, Tensor]:
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
            states = self.pass_of(tokens, vectors, mask)
            return {kind: self.fetched(pool(kind, states, mask)) for kind in poolings}

    def _embedded(self, tokens: Tensor, rows: list[Tokens]) -> Tensor:
        """[n, t] ids -> input embeddings [n, t, width], where an encoder's vectors replace those of placeholders."""
        vectors: Tensor = self.model.get_input_embeddings()(tokens)
        for position, row in enumerate(rows):
            if row.vectors is not None:
                vectors[position, : len(row.vectors)] = torch.from_numpy(row.vectors).to(vectors)
        return vectors


class _CapturedPass:
    """The CUDA graph of one kind of pass. Its inputs lie in one buffer, so that one copy fills them."""

    def __init__(self, forward: Forward, kind: PassKind, recorder: Recorder) -> None:
        self.forward, self.kind = forward, kind
        sizes = [kind.rows * kind.longest, *[kind.rows] * (1 + len(kind.buckets))]
        self.inputs = torch.zeros(sum(sizes), dtype=torch.int64, device=forward.device)
        ids, lengths, *slots = torch.split(self.inputs, sizes)
        self.ids = ids.view(kind.rows, kind.longest)
        self.lengths = lengths.fill_(1)
        self.slots = dict(zip(kind.buckets, slots, strict=True))  # by bucket: [rows]
        self.graph, (self.states, self.pooled) = recorder.record(self._body)

    def _body(self) -> tuple[Tensor, dict[str, Tensor]]:
        mask = None
        with torch.inference_mode(), self.forward.bank.applied_by_slots(self.slots, self.kind.rows):
            if self.kind.padded:
                mask = torch.arange(self.kind.longest, device=self.ids.device) < self.lengths[:, None]
            states = self.forward.pass_of(self.ids, None, mask)
            return states, {kind: pool(kind, states, mask) for kind in POOLINGS}

    def launch(self, rows: list[Tokens], adapters: Sequence[Adapter | None], poolings: set[str]) -> dict[str, Tensor]:
        """Start a pass of up to that many rows of up to that many tokens."""
        host = torch.empty(len(self.inputs), dtype=torch.int64, pin_memory=self.forward.on_gpu)
        host.numpy()[:] = self.filled(rows, adapters)
        with torch.inference_mode():
            self.inputs.copy_(host, non_blocking=True)
            self.graph.replay()
            results = {TOKENS: self.states, **self.pooled}
            return {kind: self.forward.fetched(results[kind][: len(rows)]) for kind in poolings}

    def filled(self, rows: list[Tokens], adapters: Sequence[Adapter | None]) -> Any:
        """The inputs, with rows of padding (one token long, no adapter) after the last."""
        count, longest = self.kind.rows, self.kind.longest
        ids = np.full((count, longest), self.forward.pad, dtype=np.int64)
        lengths = np.ones(count, dtype=np.int64)
        slots = {bucket: np.zeros(count, dtype=np.int64) for bucket in self.kind.buckets}
        for position, (row, adapter) in enumerate(zip(rows, adapters, strict=True)):
            ids[position, : len(row.ids)] = row.ids
            lengths[position] = len(row.ids)
            if adapter is not None:
                slots[adapter.bucket][position] = adapter.slot
        return np.concatenate([ids.ravel(), lengths, *slots.values()])


def pool(kind: str, states: Tensor, mask: Tensor | None) -> Tensor:
    """[n, t, h] -> float32 [n, h]; the states themselves for token decoders."""
    if kind == "cls":
        return states[:, 0].float()
    if kind == "max":
        kept = states if mask is None else states.masked_fill(~mask[..., None], -torch.inf)
        return kept.amax(dim=1).float()
    if kind == "mean" and mask is None:
        return states.float().mean(dim=1)
    if kind == "mean" and mask is not None:
        weight = mask[..., None].float()
        return (states.float() * weight).sum(dim=1) / weight.sum(dim=1)
    return states


def _round_up(value: int, *steps: tuple[int, int]) -> int:
    """To a multiple of the step of the first limit that holds it, of (limit, step); beyond all limits of the last."""
    step = next((step for limit, step in steps if value <= limit), steps[-1][1])
    return -(-value // step) * step
