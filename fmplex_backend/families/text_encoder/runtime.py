"""Text encoders (BERT, RoBERTa, MPNet, DistilBERT, ModernBERT ...) in torch, through transformers' AutoModel."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from fmplex_backend.decoders.decoder import TOKENS, Encoded
from fmplex_backend.families.encoder_runtime import EncoderRuntime, Extensions
from fmplex_backend.families.payload import Payload
from fmplex_backend.families.text_encoder.encoders import LoadedEncoder
from fmplex_backend.families.text_encoder.forward import Forward
from fmplex_backend.families.text_encoder.huggingface import load_backbone
from fmplex_backend.families.text_encoder.parameters import TextEncoderConfig
from fmplex_backend.families.text_encoder.tokenizer import NO_SPANS, TextTokenizer, Tokens
from fmplex_backend.families.text_encoder.traced import recorded_texts
from fmplex_backend.interface import TRUNCATED
from fmplex_backend.repository.config import TaskConfig
from fmplex_backend.types import Predict

UNREAD = ("pooler",)  # what it makes of the states is never read
PROFILE = ((1, 16), (8, 16), (1, 128), (8, 128), (32, 64))  # rows, tokens


class TextEncoderRuntime(EncoderRuntime[Tokens]):
    """One text encoder in memory, for all tasks.

    Args:
        config: the backbone's parameters.
        file: the backbone's config.pbtxt, for messages.
        device: where the weights go, as torch names it.
        max_items: Bmax.
        predict: the cost model's estimate of a pass, in seconds; decides how a batch is cut into passes.
    """

    common_outputs: ClassVar[Mapping[str, int | None]] = {TRUNCATED.name: 1}

    def __init__(self, config: TextEncoderConfig, file: Path, device: str, max_items: int, predict: Predict) -> None:
        loaded = load_backbone(config, file, torch.device(device))
        super().__init__(
            config,
            loaded.model,
            loaded.directory,
            device=torch.device(device),
            hidden=loaded.model.config.hidden_size,
            max_items=max_items,
            predict=predict,
            unread=UNREAD,
            tokens=max_items * (512 if torch.device(device).type == "cuda" else 64),
        )
        self.tokenizer = TextTokenizer(loaded.tokenizer, loaded.max_length)
        self.pad = loaded.tokenizer.pad_token_id or 0
        self.placeholder = int(self.pad == 0)  # the token id at positions that vectors fill: any but padding's
        self.width: int = self.model.get_input_embeddings().embedding_dim
        # RoBERTa and MPNet derive positions from token ids, so that ids and vectors cannot share a pass.
        self.mixes = getattr(getattr(self.model, "embeddings", None), "padding_idx", None) is None
        forward = Forward(self.model, self.bank, self.pad, max_items)
        self.set_forward(forward, lambda: recorded_texts(self.model, self.tokenizer.max_length))

    def load_encoder(self, task: TaskConfig, version: Path) -> LoadedEncoder:
        encoder: LoadedEncoder = task.encoder.load(version, self.tokenizer, self.width, self.placeholder)
        return encoder

    def encode(self, extensions: Extensions, value: Any) -> list[list[Tokens]]:
        windows: list[list[Tokens]] = extensions.encoder.encode(value, spans=extensions.decoder.reads == TOKENS)
        return windows

    def in_memory(self, rows: Sequence[Tokens], reads: str) -> int:
        states = sum(row.length for row in rows) if reads == TOKENS else len(rows)
        return sum(row.bytes for row in rows) + 4 * self.hidden * states

    def encoded(self, payload: Payload[Tokens], results: list[Any], reads: str) -> Encoded:
        rows = payload.rows
        truncated = np.array([[rows[start].truncated] for start in payload.starts])
        if reads == TOKENS:
            return Encoded(None, results, [row.offsets for row in rows], truncated)
        return replace(super().encoded(payload, results, reads), truncated=truncated)

    def common_tensors(self, encoded: Encoded) -> Mapping[str, Any]:
        return {TRUNCATED.name: encoded.truncated}

    def alike(self, row: Tokens) -> Hashable:
        return self.mixes or row.vectors is None

    def profiled_rows(self) -> Iterator[tuple[int, Tokens]]:
        for rows, tokens in PROFILE:
            ids = [self.placeholder] * min(tokens, self.tokenizer.max_length)
            yield min(rows, self.max_items), Tokens(ids, [], NO_SPANS, False)
