"""Audio encoders (Whisper's) in torch, through transformers' modules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmplex_backend.errors import TaskRefused
from fmplex_backend.families.audio_encoder.forward import Forward
from fmplex_backend.families.audio_encoder.huggingface import load_backbone
from fmplex_backend.families.audio_encoder.parameters import AudioEncoderConfig
from fmplex_backend.families.audio_encoder.preprocessing import FRAMES, AudioReader, Frames
from fmplex_backend.families.audio_encoder.traced import recorded_clips
from fmplex_backend.families.encoder_runtime import EncoderRuntime, Extensions
from fmplex_backend.repository.config import TaskConfig
from fmplex_backend.types import Predict

PROFILE = ((1, 75), (8, 75), (1, 500), (4, 500))  # rows, tokens: clips of half a second, and of nine seconds
USUAL = 150  # tokens of a clip of two seconds; a full batch of such is not cut


class AudioEncoderRuntime(EncoderRuntime[Frames]):
    """One audio encoder in memory, for all tasks.

    Args:
        config: the backbone's parameters.
        file: the backbone's config.pbtxt, for messages.
        device: where the weights go, as torch names it.
        max_items: Bmax.
        predict: the cost model's estimate of a pass, in seconds; decides how a batch is cut into passes.
    """

    quick_when_small = False  # two kilobytes of FLAC may be minutes, and a sample brings its silence
    forward: Forward

    def __init__(self, config: AudioEncoderConfig, file: Path, device: str, max_items: int, predict: Predict) -> None:
        loaded = load_backbone(config, file, torch.device(device))
        self.preprocessor = loaded.preprocessor
        on_gpu = torch.device(device).type == "cuda"
        super().__init__(
            config,
            loaded.model,
            loaded.directory,
            device=torch.device(device),
            hidden=loaded.model.config.d_model,
            max_items=max_items,
            predict=predict,
            unread=(),
            tokens=max_items * (loaded.preprocessor.window if on_gpu else min(loaded.preprocessor.window, USUAL)),
        )
        self.set_forward(Forward(self.model, self.bank, max_items), lambda: recorded_clips(self.model))

    def load_encoder(self, task: TaskConfig, version: Path) -> AudioReader:
        if task.decoder.reads == "cls":
            raise TaskRefused(
                version / "task.json",
                "decoder.pooling",
                f"it is cls, but a {self.model.config.model_type} has no class token",
                "Say mean or max, and fit the decoder again",
            )
        reader: AudioReader = task.encoder.load(version, self.preprocessor)
        return reader

    def encode(self, extensions: Extensions, value: Any) -> list[list[Frames]]:
        rows: list[list[Frames]] = extensions.encoder.encode(value)
        return rows

    def profiled_rows(self) -> Iterator[tuple[int, Frames]]:
        for rows, tokens in PROFILE:
            length = min(tokens, self.preprocessor.window)
            silent = np.zeros((self.forward.bins, FRAMES * length), dtype=np.float32)
            yield min(rows, self.max_items), Frames(silent.tobytes(), length, length)
