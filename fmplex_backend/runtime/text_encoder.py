"""Text encoders (BERT, RoBERTa, MPNet, DistilBERT, ModernBERT ...) in torch, through transformers' AutoModel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmplex_backend.config import BackboneConfig, load_task_config
from fmplex_backend.errors import InvalidRequest, TaskRefused
from fmplex_backend.extensions.adapters import Adapter, load_adapter
from fmplex_backend.extensions.decoders import TOKENS, Decoder, Encoded, load_decoder
from fmplex_backend.extensions.encoders import Encoder, load_encoder
from fmplex_backend.extensions.multi_lora import AdapterBank
from fmplex_backend.extensions.text import NO_SPANS, TextTokenizer, Tokens
from fmplex_backend.fingerprint import fingerprint
from fmplex_backend.runtime.huggingface import load_backbone
from fmplex_backend.runtime.parallel import Parallel
from fmplex_backend.runtime.passes import Predict, plan_passes
from fmplex_backend.types import NO_WORK, Finished, Outcome, Pass, PassShape, Request, Work

PROFILE = ((1, 16), (8, 16), (1, 128), (8, 128), (32, 64))  # rows, tokens


@dataclass(frozen=True, slots=True)
class Extensions:
    """A task's version, read and checked."""

    encoder: Encoder
    adapter: Adapter | None
    decoder: Decoder

    @property
    def takes(self) -> str:
        """The input tensor it reads."""
        return self.encoder.takes


@dataclass(slots=True)
class _Payload:
    """A request's rows on their way through the passes."""

    prepared_for: Extensions
    rows: list[Tokens]
    starts: list[int]  # of each text its first row: a text of several windows has several
    results: list[Any] = field(default_factory=list)  # per row: [h], or [t, h] for token decoders
    missing: int = 0


@dataclass(frozen=True, slots=True)
class _Row:
    request: Request
    position: int
    tokens: Tokens


class TextEncoderRuntime:
    """One text encoder in memory, for all tasks.

    Args:
        config: the backbone's parameters.
        file: the backbone's config.pbtxt, for messages.
        device: where the weights go.
        max_items: Bmax.
        predict: the cost model's estimate of a pass, in seconds; decides how a batch is cut into passes.
    """

    def __init__(
        self, config: BackboneConfig, file: Path, device: torch.device, max_items: int, predict: Predict
    ) -> None:
        loaded = load_backbone(config, file, device)
        self.model, self.device, self.predict = loaded.model, device, predict
        self.hidden: int = self.model.config.hidden_size
        self.tokenizer = TextTokenizer(loaded.tokenizer, loaded.max_length)
        self.pad = loaded.tokenizer.pad_token_id or 0
        self.any_token = int(self.pad == 0)  # but padding
        self.width: int = self.model.get_input_embeddings().embedding_dim
        # RoBERTa and MPNet number positions by ids: rows of ids and rows of vectors then need passes of their own.
        self.mixes = getattr(getattr(self.model, "embeddings", None), "padding_idx", None) is None
        self.fingerprint = fingerprint(loaded.directory)
        self.bank = AdapterBank(self.model, device)
        self.max_items = max_items
        self.parallel = Parallel(torch.get_num_threads() if device.type == "cpu" else 1)
        self.max_batch_tokens = config.max_batch_tokens or max_items * (512 if device.type == "cuda" else 64)

    # -- off the engine thread

    def load(self, version: Path) -> Extensions:
        """Read a version directory; raises TaskRefused."""
        file = version / "task.json"
        task = load_task_config(file)
        trained = task.backbone
        if trained and trained.fingerprint and self.fingerprint and trained.fingerprint != self.fingerprint:
            raise TaskRefused(
                file,
                "backbone.fingerprint",
                f"it was trained for {trained.model} with weights {trained.fingerprint}, this backbone's are "
                f"{self.fingerprint}",
                "Bind the task to the backbone it was trained for",
            )
        encoder = load_encoder(task.encoder, version, self.tokenizer, self.width, self.any_token)
        adapter = None
        if task.adapter:
            adapter = load_adapter(version / task.adapter.path, self.model, self.model.dtype, self.device)
        return Extensions(encoder, adapter, load_decoder(task.decoder, version, self.hidden))

    def prepare(self, request: Request) -> None:
        """Run the task's encoder; raises InvalidRequest."""
        self._encode(request, request.vfm.extensions)

    def _encode(self, request: Request, extensions: Extensions) -> None:
        value = request.inputs.get(extensions.takes)
        if value is None:
            has = ", ".join(request.inputs) or "none"
            raise InvalidRequest(f"{request.vfm.name!r} takes the input {extensions.takes}, the request has {has}")
        windows = extensions.encoder.encode(value, spans=extensions.decoder.pooling == TOKENS)
        rows = [row for own in windows for row in own]
        lengths = [len(row.ids) for row in rows]
        starts = [0, *accumulate(len(own) for own in windows[:-1])]
        request.payload = _Payload(extensions, rows, starts)
        request.work = Work(len(rows), sum(lengths), sum(length * length for length in lengths))

    def decode(self, request: Request, value: list[Any]) -> Mapping[str, Any]:
        """Rows' hidden states -> output tensors (reply thread)."""
        extensions: Extensions = request.extensions
        rows: list[Tokens] = request.payload.rows
        starts: list[int] = request.payload.starts
        by_token = extensions.decoder.pooling == TOKENS
        encoded = Encoded(
            pooled=None if by_token else _joined(np.stack(value), starts, extensions.decoder.pooling),
            tokens=value if by_token else [],
            offsets=[row.offsets for row in rows] if by_token else [],
            truncated=np.array([[rows[start].truncated] for start in starts]),
        )
        return {**extensions.decoder.decode(encoded), "TRUNCATED": encoded.truncated}

    # -- the engine thread

    def attach(self, extensions: Extensions) -> None:
        """Put a version's adapter into the bank."""
        if extensions.adapter:
            self.bank.attach(extensions.adapter)

    def detach(self, extensions: Extensions) -> None:
        """Take a version's adapter out of the bank."""
        if extensions.adapter:
            self.bank.detach(extensions.adapter)

    def run(self, batch: Sequence[Request]) -> Iterator[Pass]:
        """Run the rows of a batch in passes by length, the short first."""
        rows = []
        for request in batch:
            if request.payload.prepared_for is not request.extensions:
                self._encode(request, request.extensions)  # the task changed while it waited
            payload: _Payload = request.payload
            payload.results = [None] * len(payload.rows)
            payload.missing = len(payload.rows)
            rows += [_Row(request, position, tokens) for position, tokens in enumerate(payload.rows)]
        for alike in self._alike(rows):
            for group in plan_passes([len(row.tokens.ids) for row in alike], self.predict):
                yield self._pass([alike[position] for position in group])

    def _alike(self, rows: list[_Row]) -> list[list[_Row]]:
        """Rows that may share a pass."""
        if self.mixes:
            return [rows]
        apart: list[list[_Row]] = [[], []]
        for row in rows:
            apart[row.tokens.vectors is None].append(row)
        return [alike for alike in apart if alike]

    def is_fatal(self, error: Exception) -> bool:
        """CUDA errors other than a lack of memory stay with the process."""
        return "CUDA error" in str(error) and not isinstance(error, torch.OutOfMemoryError)

    def profile(self) -> Iterator[tuple[PassShape, float]]:
        """Time a few shapes, after one that warms up."""
        longest = self.tokenizer.max_length
        shapes = [(min(rows, self.max_items), min(tokens, longest)) for rows, tokens in PROFILE]
        for position, (rows, tokens) in enumerate([shapes[0], *shapes]):
            start = perf_counter()
            self._forward([Tokens([self.any_token] * tokens, [], NO_SPANS, False)] * rows, [None] * rows, {"mean"})
            if position:
                yield PassShape(rows * tokens, tokens, 0), perf_counter() - start

    def _pass(self, rows: list[_Row]) -> Pass:
        rows.sort(key=lambda row: self.bank.order(row.request.extensions.adapter))
        adapters = [row.request.extensions.adapter for row in rows]
        poolings = {row.request.extensions.decoder.pooling for row in rows}
        start = thread_time()
        hidden = self._forward([row.tokens for row in rows], adapters, poolings)
        worked = thread_time() - start if self.device.type == "cpu" else None
        work: dict[Request, Work] = {}
        outcomes: list[tuple[Request, Outcome]] = []
        for index, row in enumerate(rows):
            request, length = row.request, len(row.tokens.ids)
            payload: _Payload = request.payload
            payload.results[row.position] = hidden.row(index, request.extensions.decoder.pooling, row.tokens)
            payload.missing -= 1
            work[request] = work.get(request, NO_WORK) + Work(1, length, length * length)
            if not payload.missing:
                outcomes.append((request, Finished(payload.results)))
        longest = max(len(row.tokens.ids) for row in rows)
        groups = len({id(adapter) for adapter in adapters if adapter is not None})
        return Pass(PassShape(len(rows) * longest, longest, groups), list(work.items()), outcomes, worked)

    def _forward(self, rows: list[Tokens], adapters: list[Adapter | None], poolings: set[str]) -> _Hidden:
        """One pass of n rows of up to t tokens -> states on the CPU."""

        def part(start: int, end: int) -> dict[str, Any]:
            with self.bank.applied(adapters[start:end]):
                return self._states(rows[start:end], poolings)

        return _Hidden(self.parallel.map(part, len(rows), len(rows) * max(len(row.ids) for row in rows)))

    def _states(self, rows: list[Tokens], poolings: set[str]) -> dict[str, Any]:
        ids = [row.ids for row in rows]
        longest = max(map(len, ids))
        padded = any(len(row) < longest for row in ids)
        table = np.full((len(ids), longest), self.pad, dtype=np.int64)
        for position, row in enumerate(ids):
            table[position, : len(row)] = row
        tokens = torch.from_numpy(table).to(self.device)  # [n, t]
        mask = None
        inputs: dict[str, Tensor] = {}
        if padded:  # with no mask, attention takes its faster path
            lengths = torch.tensor([len(row) for row in ids], device=self.device)
            mask = torch.arange(longest, device=self.device) < lengths[:, None]  # [n, t]
            inputs["attention_mask"] = mask.long()
        with torch.inference_mode():
            if any(row.vectors is not None for row in rows):
                inputs["inputs_embeds"] = self._embedded(tokens, rows)
            else:
                inputs["input_ids"] = tokens
            states = self.model(**inputs).last_hidden_state  # [n, t, h]
            return {kind: _pool(kind, states, mask) for kind in poolings}

    def _embedded(self, tokens: Tensor, rows: list[Tokens]) -> Tensor:
        """[n, t] ids -> [n, t, width], an encoder's vectors in their places."""
        vectors: Tensor = self.model.get_input_embeddings()(tokens)
        for position, row in enumerate(rows):
            if row.vectors is not None:
                vectors[position, : len(row.vectors)] = torch.from_numpy(row.vectors).to(vectors)
        return vectors


def _pool(kind: str, states: Tensor, mask: Tensor | None) -> Any:
    """[n, t, h] -> [n, h] as float32 numpy; the states themselves for token decoders."""
    if kind == "cls":
        pooled = states[:, 0].float()
    elif kind == "max":
        kept = states if mask is None else states.masked_fill(~mask[..., None], -torch.inf)
        pooled = kept.amax(dim=1).float()
    elif kind == "mean" and mask is None:
        pooled = states.float().mean(dim=1)
    elif kind == "mean" and mask is not None:
        weight = mask[..., None].float()
        pooled = (states.float() * weight).sum(dim=1) / weight.sum(dim=1)
    else:
        return states
    return pooled.cpu().numpy()


def _joined(pooled: Any, starts: list[int], pooling: str) -> Any:
    """Rows' vectors [rows, h] -> texts' [n, h]: the mean (or the largest) of a text's windows."""
    if len(starts) == len(pooled):
        return pooled
    if pooling == "max":
        return np.maximum.reduceat(pooled, starts, axis=0)
    counts = np.diff([*starts, len(pooled)])[:, None]
    return np.add.reduceat(pooled, starts, axis=0) / counts.astype(np.float32)


class _Hidden:
    """What the parts of a pass left behind, by pooling."""

    def __init__(self, parts: list[tuple[int, int, dict[str, Any]]]) -> None:
        self.rows = [(by_pooling, index - start) for start, end, by_pooling in parts for index in range(start, end)]

    def row(self, index: int, pooling: str, tokens: Tokens) -> Any:
        """One row's [h], or [t, h] of its plain tokens."""
        by_pooling, place = self.rows[index]
        if pooling != TOKENS:
            return by_pooling[pooling][place]
        with torch.inference_mode():
            return by_pooling[pooling][place, tokens.plain].float().cpu().numpy()
