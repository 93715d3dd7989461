"""Loading a Whisper model's encoder and its feature extractor; other kinds of models are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fmplex_backend.errors import BackboneRefused
from fmplex_backend.families.audio_encoder.clips import RATE
from fmplex_backend.families.audio_encoder.parameters import AudioEncoderConfig
from fmplex_backend.families.audio_encoder.preprocessing import Preprocessor
from fmplex_backend.families.audio_encoder.whisper import copy_less
from fmplex_backend.families.fast_linears import speed_up
from fmplex_backend.families.huggingface import load_model, on_device

MODEL_TYPE = "whisper"


@dataclass(frozen=True, slots=True)
class LoadedBackbone:
    """The encoder on its device, in eval mode and frozen."""

    model: Any
    preprocessor: Preprocessor
    directory: Path


def load_backbone(config: AudioEncoderConfig, file: Path, device: torch.device) -> LoadedBackbone:
    """Load encoder and feature extractor; raises BackboneRefused naming `file`."""
    loaded = load_model(config, file, device, read=_extractor, part=_checked, unread=_decoder, loader=_EncoderLoader)
    extractor, model = loaded.reader, loaded.model
    if extractor.sampling_rate != RATE or extractor.feature_size != model.config.num_mel_bins:
        raise BackboneRefused(
            file,
            "parameters.model",
            f"the feature extractor of {config.model!r} makes {extractor.feature_size} bins of "
            f"{extractor.sampling_rate} samples a second, the encoder takes {model.config.num_mel_bins} of {RATE}",
            "Copy the model's own preprocessor_config.json",
        )
    preprocessor = Preprocessor(extractor, model.config.max_source_positions, config.max_audio_seconds)
    model = on_device(model, device)
    copy_less(model)
    speed_up(model)
    return LoadedBackbone(model, preprocessor, loaded.directory)


def _extractor(directory: Path) -> Any:
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor.from_pretrained(directory)


def _checked(config: Any) -> Any:
    if config.model_type != MODEL_TYPE:
        raise ValueError(f"it is a {config.model_type}, where the family takes Whisper models")
    return config


def _decoder(model: Any) -> str:
    """Weights of the decoder may be missing: it is not kept."""
    return "decoder."


class _EncoderLoader:
    """Loads the whole model, as files have it, and keeps the encoder."""

    @staticmethod
    def from_pretrained(directory: Path, **options: Any) -> tuple[Any, Any]:
        from transformers import WhisperModel

        found: Any = WhisperModel.from_pretrained(directory, **options)
        model, loading = found
        return model.encoder, loading
