"""Vision encoders (DINOv2, ViT, Swin, ConvNeXt, CLIP's and SigLIP's towers ...) in torch, through AutoModel."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmplex_backend.adapters.peft import Adapter
from fmplex_backend.decoders.decoder import TOKENS, Encoded
from fmplex_backend.errors import TaskRefused
from fmplex_backend.families.adaptable import check_adaptable, not_adaptable
from fmplex_backend.families.encoder_runtime import EncoderRuntime, Extensions
from fmplex_backend.families.payload import Payload
from fmplex_backend.families.vision_encoder.forward import Forward
from fmplex_backend.families.vision_encoder.huggingface import load_backbone
from fmplex_backend.families.vision_encoder.parameters import VisionEncoderConfig
from fmplex_backend.families.vision_encoder.preprocessing import ImageReader, Pixels
from fmplex_backend.repository.config import TaskConfig
from fmplex_backend.types import Predict

UNREAD = ("pooler.dense",)  # what it makes of the states is never read
PROFILE = (1, 2, 4, 8)  # rows
OTHER_KIND = "Choose another kind of decoder, or another backbone"
LARGER = 4  # times the tokens of the pictures that the processor makes: a batch of those of twice the side is not cut


class VisionEncoderRuntime(EncoderRuntime[Pixels]):
    """One vision encoder in memory, for all tasks.

    Args:
        config: the backbone's parameters.
        file: the backbone's config.pbtxt, for messages.
        device: where the weights go, as torch names it.
        max_items: Bmax.
        predict: the cost model's estimate of a pass, in seconds.
    """

    quick_when_small = False  # two kilobytes of PNG may be megapixels, and as many tiny pictures are all made large
    folds = True  # where it does not hold, `not_adaptable` says so

    def __init__(self, config: VisionEncoderConfig, file: Path, device: str, max_items: int, predict: Predict) -> None:
        loaded = load_backbone(config, file, torch.device(device))
        self.preprocessor, self.anatomy = loaded.preprocessor, loaded.anatomy
        super().__init__(
            config,
            loaded.model,
            loaded.directory,
            device=torch.device(device),
            hidden=loaded.hidden,
            max_items=max_items,
            predict=predict,
            unread=UNREAD,
            tokens=LARGER * max_items * self._grey(self.preprocessor.own_side).length,
        )
        side = self.preprocessor.own_side
        self.not_adaptable = not_adaptable(self.model, partial(self.anatomy.run, self.model), (3, side, side))
        self.set_forward(Forward(self.model, self.bank, self.anatomy, self.preprocessor, max_items))

    def load_encoder(self, task: TaskConfig, version: Path) -> ImageReader:
        if task.decoder.reads == "cls" and not self.anatomy.has_summary:
            raise TaskRefused(
                version / "task.json",
                "decoder.pooling",
                f"it is cls, but a {self.model.config.model_type} has neither a class token nor a pooled vector",
                "Say mean or max, and fit the decoder again",
            )
        dense = task.decoder.reads == TOKENS
        if dense and self.anatomy.stride is None:
            raise TaskRefused(
                version / "task.json", "decoder.kind", f"it is {task.decoder.kind}, and {self.no_grid}", OTHER_KIND
            )
        reader: ImageReader = task.encoder.load(version, self.preprocessor, whole=dense)
        return reader

    @property
    def no_grid(self) -> str:
        """Of a backbone without a `stride`, why no decoder reads its patches."""
        return f"the states of a {self.model.config.model_type} are no square grid of patches"

    def check_adapter(self, adapter: Adapter, file: Path) -> None:
        check_adaptable(adapter, file, self.not_adaptable, "pictures")

    def encode(self, extensions: Extensions, value: Any) -> list[list[Pixels]]:
        return [[row] for row in extensions.encoder.encode(value)]

    def encoded(self, payload: Payload[Pixels], results: list[Any], reads: str) -> Encoded:
        if reads != TOKENS:
            return super().encoded(payload, results, reads)
        lengths = [row.length for row in payload.rows]
        return Encoded(None, results, [], np.zeros((len(results), 1), dtype=np.bool_), lengths=lengths)

    def in_memory(self, rows: Sequence[Pixels], reads: str) -> int:
        if reads != TOKENS or self.anatomy.stride is None:
            return super().in_memory(rows, reads)
        patches = sum((row.shape[1] // self.anatomy.stride) * (row.shape[2] // self.anatomy.stride) for row in rows)
        return sum(row.bytes for row in rows) + 4 * self.hidden * patches

    def alike(self, row: Pixels) -> Hashable:
        return row.shape, row.dtype

    def profiled_rows(self) -> Iterator[tuple[int, Pixels]]:
        row = self._grey(self.preprocessor.own_side)
        for rows in sorted({min(rows, self.max_items) for rows in PROFILE}):
            yield rows, row

    def _grey(self, side: int) -> Pixels:
        return self.preprocessor.read(np.full((side, side, 3), 128, dtype=np.uint8))
