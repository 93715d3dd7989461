"""Loading a Hugging Face text encoder and its tokenizer; other kinds of models are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fmplex_backend.errors import BackboneRefused
from fmplex_backend.families.fast_linears import speed_up
from fmplex_backend.families.huggingface import load_model, on_device
from fmplex_backend.families.text_encoder.attention import never_reading_masks
from fmplex_backend.families.text_encoder.parameters import TextEncoderConfig


@dataclass(frozen=True, slots=True)
class LoadedBackbone:
    """The model on its device, in eval mode and frozen."""

    model: Any
    tokenizer: Any
    directory: Path
    max_length: int  # tokens, specials included


def load_backbone(config: TextEncoderConfig, file: Path, device: torch.device) -> LoadedBackbone:
    """Load model and tokenizer; raises BackboneRefused naming `file`."""
    from transformers import AutoTokenizer

    loaded = load_model(config, file, device, read=AutoTokenizer.from_pretrained)
    model, tokenizer = loaded.model, loaded.reader
    if not tokenizer.is_fast:
        raise BackboneRefused(
            file,
            "parameters.model",
            f"{config.model!r} has no fast tokenizer",
            "Save one beside it (tokenizer.json): AutoTokenizer.from_pretrained(..., use_fast=True)",
        )
    if not hasattr(model.config, "hidden_size") or getattr(model.config, "is_encoder_decoder", False):
        raise BackboneRefused(
            file,
            "parameters.family",
            f"{config.model!r} ({model.config.model_type}) is not a text encoder",
            "Name an encoder, e.g. BERT, RoBERTa, MPNet, DistilBERT or ModernBERT",
        )
    model = on_device(model, device)
    speed_up(model)
    if device.type == "cuda":
        never_reading_masks(model)
    return LoadedBackbone(model, tokenizer, loaded.directory, _max_length(config, file, tokenizer, model))


def _max_length(config: TextEncoderConfig, file: Path, tokenizer: Any, model: Any) -> int:
    positions = getattr(model.config, "max_position_embeddings", None) or 512
    if model.config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= model.config.pad_token_id + 1  # their position ids begin after the padding's
    longest = min(positions, tokenizer.model_max_length)
    if config.max_length > longest:
        raise BackboneRefused(
            file,
            "parameters.max_length",
            f"{config.max_length} is more than the model's {longest}",
            "Lower it",
        )
    return config.max_length or longest
