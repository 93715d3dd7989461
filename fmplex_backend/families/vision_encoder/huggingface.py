"""Loading a Hugging Face vision backbone and its image processor; other kinds of models are refused."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fmplex_backend.errors import BackboneRefused
from fmplex_backend.families.fast_linears import speed_up
from fmplex_backend.families.huggingface import load_model, on_device
from fmplex_backend.families.vision_encoder.anatomy import Anatomy
from fmplex_backend.families.vision_encoder.parameters import VisionEncoderConfig
from fmplex_backend.families.vision_encoder.preprocessing import Preprocessor


@dataclass(frozen=True, slots=True)
class LoadedBackbone:
    """The model on its device, in eval mode and frozen."""

    model: Any
    preprocessor: Preprocessor
    anatomy: Anatomy
    hidden: int
    directory: Path


def load_backbone(config: VisionEncoderConfig, file: Path, device: torch.device) -> LoadedBackbone:
    """Load model and processor, and look at what they make of a picture; raises BackboneRefused naming `file`."""
    loaded = load_model(config, file, device, read=_image_processor, part=_tower, unread=_unread)
    model = on_device(loaded.model, device)
    try:
        side = _made_side(loaded.reader)
        anatomy = Anatomy.of(model, side)
        another = side + (side if side < 2 * anatomy.patch else anatomy.patch)
        preprocessor = Preprocessor(
            loaded.reader,
            config.max_pixels,
            anatomy.patch,
            anatomy.extra,
            any_side=anatomy.takes(model, another),
            stride=anatomy.stride or anatomy.patch,
        )
        hidden = _width(model, anatomy, side)
    except Exception as error:  # a model of another kind raises whatever it stumbles over
        raise BackboneRefused(
            file,
            "parameters.family",
            f"{config.model!r} ({model.config.model_type}) does not take pictures as a vision encoder does: "
            f"{type(error).__name__}: {error}",
            "Name one that does, e.g. DINOv2, ViT, Swin, ConvNeXt, CLIP or SigLIP",
        ) from error
    speed_up(model)
    return LoadedBackbone(model, preprocessor, anatomy, hidden, loaded.directory)


def _image_processor(directory: Path) -> Any:
    """That of Pillow, whether torchvision is there or not: the same picture gives the same pixels everywhere."""
    from transformers import AutoImageProcessor

    own = {"backend": "pil"} if int(version("transformers").partition(".")[0]) >= 5 else {"use_fast": False}
    return AutoImageProcessor.from_pretrained(directory, **own)


def _tower(config: Any) -> Any:
    """The vision tower's config of a model that has one beside a text tower."""
    return getattr(config, "vision_config", None) or config


def _unread(model: Any) -> str:
    """A pooler with a dense layer is of the pretraining, see `Anatomy`."""
    return "pooler.dense."


def _made_side(processor: Any) -> int:
    """Side of the square that a processor makes."""
    return Preprocessor(processor, 1 << 30, 16, 0, any_side=False).own_side


def _width(model: Any, anatomy: Anatomy, side: int) -> int:
    """Of the states, which pass the one that decoders read too."""
    with torch.inference_mode():
        states = anatomy.states(model, torch.zeros(1, 3, side, side, dtype=model.dtype, device=model.device))
    width = states.patches.shape[-1]
    if states.summary is not None and states.summary.shape[-1] != width:
        raise ValueError(f"its pooled vector has {states.summary.shape[-1]} numbers, its patches have {width}")
    return int(width)
