"""A tiny Whisper with random weights, as the hub has them, and clips that such a one can tell apart."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from fmplex_backend.families.audio_encoder.parameters import AudioEncoderConfig
from fmplex_backend.families.audio_encoder.runtime import AudioEncoderRuntime
from fmplex_backend.scheduling import CostModel

RATE, BINS, HIDDEN = 16_000, 16, 32
WINDOW = 400  # tokens: 8 seconds
TOKEN = 320  # samples
Array = npt.NDArray[np.float32]


def tiny_whisper(hidden: int = HIDDEN, layers: int = 2, seed: int = 0, deviation: float = 0.2) -> tuple[Any, Any]:
    """A model, with weights large enough for attention and adapters to change its outputs, and its extractor."""
    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=64,
        num_mel_bins=BINS,
        d_model=hidden,
        encoder_layers=layers,
        encoder_attention_heads=2,
        encoder_ffn_dim=2 * hidden,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        max_source_positions=WINDOW,
        max_target_positions=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    model = WhisperModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed_positions" not in name:
                parameter.normal_(std=deviation)
    extractor = WhisperFeatureExtractor(feature_size=BINS, chunk_length=WINDOW * TOKEN // RATE)
    return model.eval().requires_grad_(False), extractor


def save_whisper(directory: Path, **options: Any) -> Path:
    """Save model and extractor as the hub has them."""
    for each in tiny_whisper(**options):
        each.save_pretrained(directory)
    return directory


def audio_runtime(directory: Path, *, max_items: int = 32, **config: Any) -> AudioEncoderRuntime:
    """The real runtime over a tiny model, in float32 by default."""
    settings = AudioEncoderConfig(model=str(directory), threads=1, **({"dtype": "float32"} | config))
    return AudioEncoderRuntime(settings, directory / "config.pbtxt", "cpu", max_items, CostModel().predict)


def clip(seed: int, seconds: float = 0.3, *, pitch: float | None = None, rate: int = RATE) -> Array:
    """A tone that rises or falls, with a little noise: [n]."""
    rng = np.random.default_rng(seed)
    times = np.arange(max(1, round(seconds * rate))) / rate
    first, bend = pitch or rng.uniform(100, 900), rng.uniform(-0.3, 0.3)
    wave = np.sin(2 * np.pi * first * times * (1 + bend * times / times[-1] if len(times) > 1 else 1))
    return (wave * rng.uniform(0.2, 0.6) + rng.normal(0, 0.02, len(times))).astype(np.float32)


def encoded(samples: Any, rate: int = RATE, kind: str = "WAV", **options: Any) -> bytes:
    """A file's bytes, of samples [n] or [n, channels]."""
    stream = BytesIO()
    soundfile.write(stream, samples, rate, format=kind, **options)
    return stream.getvalue()


def whole_states(model: Any, extractor: Any, samples: Array, tokens: int) -> Any:
    """Samples -> [tokens, h] by transformers' own forward, of an encoder whose window is so many tokens.

    Features are those of the extractor's whole window, cut off; positions are the first of the model's own.
    """
    features = extractor(samples, sampling_rate=RATE, return_tensors="pt")["input_features"][..., : 2 * tokens]
    encoder = getattr(model, "base_model", model)
    encoder = getattr(encoder, "model", encoder)
    positions, window = encoder.embed_positions, encoder.config.max_source_positions
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(positions.weight[:tokens])
    encoder.config.max_source_positions = tokens
    try:
        with torch.no_grad():
            return model(features).last_hidden_state[0]
    finally:
        encoder.embed_positions, encoder.config.max_source_positions = positions, window
