"""Text encoders (BERT, RoBERTa, MPNet, DistilBERT, ModernBERT ...) in torch, through transformers' AutoModel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.adapters.peft import Adapter, load_adapter
from fmplex_backend.decoders.decoder import TOKENS, Encoded, LoadedDecoder
from fmplex_backend.errors import InvalidRequest, TaskRefused
from fmplex_backend.families.passes import cut_into_portions, plan_passes
from fmplex_backend.families.precision import dtype_name
from fmplex_backend.families.shared_rows import SharedRow, divide, unite
from fmplex_backend.families.text_encoder.encoders import LoadedEncoder
from fmplex_backend.families.text_encoder.forward import Forward, Launched
from fmplex_backend.families.text_encoder.huggingface import load_backbone
from fmplex_backend.families.text_encoder.parameters import TextEncoderConfig
from fmplex_backend.families.text_encoder.payload import KEY_BYTES, Payload, row_key
from fmplex_backend.families.text_encoder.tokenizer import NO_SPANS, TextTokenizer, Tokens
from fmplex_backend.fingerprint import fingerprint
from fmplex_backend.interface import TRUNCATED
from fmplex_backend.repository.config import load_task_config
from fmplex_backend.types import Outcome, Pass, PassShape, Predict, Request

UNREAD = ("pooler",)  # what it makes of the states is never read
PROFILE = ((1, 16), (8, 16), (1, 128), (8, 128), (32, 64))  # rows, tokens
TOKEN_BYTES = 40 + KEY_BYTES  # about what a token id takes in a list, and in its row's key


@dataclass(frozen=True, slots=True)
class Extensions:
    """A task's version, read and checked."""

    encoder: LoadedEncoder
    adapter: Adapter | None
    decoder: LoadedDecoder

    @property
    def takes(self) -> str:
        return self.encoder.takes

    @property
    def adapted(self) -> bool:
        return self.adapter is not None

    @property
    def outputs(self) -> Mapping[str, int | None]:
        return {**self.decoder.sizes, TRUNCATED.name: 1}


class TextEncoderRuntime:
    """One text encoder in memory, for all tasks.

    Args:
        config: the backbone's parameters.
        file: the backbone's config.pbtxt, for messages.
        device: where the weights go, as torch names it.
        max_items: Bmax.
        predict: the cost model's estimate of a pass, in seconds; decides how a batch is cut into passes.
    """

    def __init__(self, config: TextEncoderConfig, file: Path, device: str, max_items: int, predict: Predict) -> None:
        self.device = torch.device(device)
        loaded = load_backbone(config, file, self.device)
        self.model, self.predict = loaded.model, predict
        self.dtype = dtype_name(self.model.dtype)
        self.hidden: int = self.model.config.hidden_size
        self.tokenizer = TextTokenizer(loaded.tokenizer, loaded.max_length)
        self.pad = loaded.tokenizer.pad_token_id or 0
        self.placeholder = int(self.pad == 0)  # the token id at positions that vectors fill: any but padding's
        self.width: int = self.model.get_input_embeddings().embedding_dim
        # RoBERTa and MPNet derive positions from token ids, so that ids and vectors cannot share a pass.
        self.mixes = getattr(getattr(self.model, "embeddings", None), "padding_idx", None) is None
        self.fingerprint = fingerprint(loaded.directory)
        self.bank = AdapterBank(self.model, self.device)
        self.queues_passes = self.device.type == "cuda"
        self.max_items, self.shares = max_items, config.share_rows
        self.forward = Forward(self.model, self.bank, self.pad, max_items)
        self.max_batch_tokens = config.max_batch_tokens or max_items * (512 if self.device.type == "cuda" else 64)

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
        encoder = task.encoder.load(version, self.tokenizer, self.width, self.placeholder)
        adapter = None
        if task.adapter:
            directory = version / task.adapter.path
            adapter = load_adapter(directory, self.model, self.model.dtype, self.device, unread=UNREAD)
        return Extensions(encoder, adapter, task.decoder.load(version, self.hidden))

    def prepare(self, request: Request) -> None:
        """Run the task's encoder; raises InvalidRequest."""
        extensions: Extensions = request.extensions
        value = request.inputs.get(extensions.takes)
        if value is None:
            has = ", ".join(request.inputs) or "none"
            raise InvalidRequest(f"{request.vfm.name!r} takes the input {extensions.takes}, the request has {has}")
        by_token = extensions.decoder.reads == TOKENS
        windows = extensions.encoder.encode(value, spans=by_token)
        rows = [row for own in windows for row in own]
        lengths = [len(row.ids) for row in rows]
        starts = [0, *accumulate(len(own) for own in windows[:-1])]
        portions = cut_into_portions(lengths, max_rows=self.max_items, max_tokens=self.max_batch_tokens)
        keys = [row_key(row, extensions.adapter) if self.shares else object() for row in rows]
        payload = request.prepared = Payload(rows, starts, portions, keys)
        request.work, request.rows, request.items = payload.work, payload.row_work, len(rows)
        vectors = sum(row.vectors.nbytes for row in rows if row.vectors is not None)
        results = 4 * self.hidden * (sum(lengths) if by_token else len(rows))
        request.prepared_bytes = TOKEN_BYTES * sum(lengths) + 2 * vectors + results  # keys hold vectors, too

    def decode(self, request: Request, value: list[Any]) -> Mapping[str, Any]:
        """Rows' hidden states -> output tensors (reply threads)."""
        extensions: Extensions = request.extensions
        rows: list[Tokens] = request.prepared.rows
        starts: list[int] = request.prepared.starts
        by_token = extensions.decoder.reads == TOKENS
        encoded = Encoded(
            pooled=None if by_token else _joined(np.stack(value), starts, extensions.decoder.reads),
            tokens=value if by_token else [],
            offsets=[row.offsets for row in rows] if by_token else [],
            truncated=np.array([[rows[start].truncated] for start in starts]),
        )
        return {**extensions.decoder.decode(encoded), TRUNCATED.name: encoded.truncated}

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
        """Run the rows of a batch in passes by length, the short first; equal rows once."""
        rows = unite(asked for request in batch for asked in request.prepared.begin_step(request))
        groups = [
            [alike[position] for position in group]
            for alike in self._alike(rows)
            for group in plan_passes([len(row.row.ids) for row in alike], self.predict)
        ]
        if self.queues_passes:
            launched = [self._launch(group) for group in groups]
            return map(self._collect, groups, launched)
        return (self._collect(group, self._launch(group)) for group in groups)

    def _alike(self, rows: list[SharedRow[Tokens]]) -> list[list[SharedRow[Tokens]]]:
        """The rows in groups that may share passes."""
        if self.mixes:
            return [rows]
        apart: list[list[SharedRow[Tokens]]] = [[], []]
        for row in rows:
            apart[row.row.vectors is None].append(row)
        return [alike for alike in apart if alike]

    def is_fatal(self, error: Exception) -> bool:
        """Every CUDA error but a lack of memory leaves the process's CUDA context unusable."""
        return "CUDA error" in str(error) and not isinstance(error, torch.OutOfMemoryError)

    def profile(self) -> Iterator[tuple[PassShape, float]]:
        """Time a pass of each of a few shapes, after a warm-up."""
        longest = self.tokenizer.max_length
        shapes = [(min(rows, self.max_items), min(tokens, longest)) for rows, tokens in PROFILE]
        for position, (rows, tokens) in enumerate([shapes[0], *shapes]):
            start = perf_counter()
            line = Tokens([self.placeholder] * tokens, [], NO_SPANS, False)
            self.forward.launch([line] * rows, [None] * rows, {"mean"}).hidden()
            if position:
                yield PassShape(rows * tokens, tokens, 0), perf_counter() - start

    def _launch(self, rows: list[SharedRow[Tokens]]) -> Launched:
        rows.sort(key=lambda row: self.bank.order(_adapter(row)))
        poolings = {request.extensions.decoder.reads for row in rows for request, _ in row.askers}
        return self.forward.launch([row.row for row in rows], [_adapter(row) for row in rows], poolings)

    def _collect(self, rows: list[SharedRow[Tokens]], launched: Launched) -> Pass:
        hidden = launched.hidden()
        outcomes: list[tuple[Request, Outcome]] = []
        for place, row in enumerate(rows):
            for request, index in row.askers:
                payload: Payload = request.prepared
                payload.results[index] = hidden.row(place, request.extensions.decoder.reads, payload.rows[index])
                payload.missing -= 1
                if not payload.missing:
                    outcomes.append((request, payload.end_step()))
        longest = max(len(row.row.ids) for row in rows)
        groups = len({id(adapter) for row in rows if (adapter := _adapter(row)) is not None})
        portions, sharing = divide(rows)
        return Pass(PassShape(len(rows) * longest, longest, groups), portions, outcomes, launched.worked, sharing)


def _adapter(row: SharedRow[Tokens]) -> Adapter | None:
    """Of all who ask for a row: it is in the key."""
    extensions: Extensions = row.askers[0][0].extensions
    return extensions.adapter


def _joined(pooled: Any, starts: list[int], pooling: str) -> Any:
    """Rows' vectors [rows, h] -> texts' [n, h]: the mean (or the largest) of a text's windows."""
    if len(starts) == len(pooled):
        return pooled
    if pooling == "max":
        return np.maximum.reduceat(pooled, starts, axis=0)
    counts = np.diff([*starts, len(pooled)])[:, None]
    return np.add.reduceat(pooled, starts, axis=0) / counts.astype(np.float32)
