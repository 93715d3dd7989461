"""Tiny vision backbones with random weights, as the hub has them, and pictures that such ones can tell apart."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    ConvNextImageProcessorPil,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from fmplex_backend.families.vision_encoder.parameters import VisionEncoderConfig
from fmplex_backend.families.vision_encoder.runtime import VisionEncoderRuntime
from fmplex_backend.scheduling import CostModel

SIDE, HIDDEN = 32, 32
Array = npt.NDArray[np.uint8]
_ViT: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIDE,
    "patch_size": 8,
}
_DINO = {name: value for name, value in _ViT.items() if name != "intermediate_size"}
_TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 32,
}
SQUARE = {"height": SIDE, "width": SIDE}
CROPPED: dict[str, Any] = {"size": {"shortest_edge": 36}, "crop_size": SQUARE}
MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "vit": lambda: (ViTModel(ViTConfig(**_ViT)), ViTImageProcessorPil(size=SQUARE)),
    "dinov2": lambda: (Dinov2Model(Dinov2Config(**_DINO)), BitImageProcessorPil(**CROPPED)),
    "registers": lambda: (
        Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**_DINO, num_register_tokens=4)),
        BitImageProcessorPil(**CROPPED),
    ),
    "swin": lambda: (
        SwinModel(
            SwinConfig(image_size=SIDE, patch_size=2, embed_dim=16, depths=[2, 1], num_heads=[2, 2], window_size=4)
        ),
        ViTImageProcessorPil(size=SQUARE),
    ),
    "convnext": lambda: (
        ConvNextModel(
            ConvNextConfig(hidden_sizes=[8, 16, 32], depths=[1, 1, 1], num_stages=3, layer_scale_init_value=1.0)
        ),
        ConvNextImageProcessorPil(size={"shortest_edge": SIDE}),
    ),
    "clip": lambda: (
        CLIPModel(CLIPConfig(vision_config=CLIPVisionConfig(**_ViT), text_config=CLIPTextConfig(**_TEXT))),
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE),
    ),
    "siglip": lambda: (
        SiglipModel(SiglipConfig(vision_config=SiglipVisionConfig(**_ViT), text_config=SiglipTextConfig(**_TEXT))),
        SiglipImageProcessorPil(size=SQUARE),
    ),
}


def tiny_vision(kind: str, seed: int = 0) -> tuple[Any, Any]:
    """A model, with weights large enough for attention and adapters to change its outputs, and its processor."""
    torch.manual_seed(seed)
    model, processor = MODELS[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.2)
    return model.eval().requires_grad_(False), processor


def save_vision(directory: Path, kind: str = "registers", seed: int = 0) -> Path:
    """Save model and processor as the hub has them."""
    model, processor = tiny_vision(kind, seed)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def vision_runtime(directory: Path, *, max_items: int = 32, **config: Any) -> VisionEncoderRuntime:
    """The real runtime over a tiny model, in float32 by default."""
    settings = VisionEncoderConfig(model=str(directory), threads=1, **({"dtype": "float32"} | config))
    return VisionEncoderRuntime(settings, directory / "config.pbtxt", "cpu", max_items, CostModel().predict)


def picture(seed: int, height: int = 40, width: int = 48) -> Array:
    """A gradient between two colours, with a little noise: [h, w, 3]."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 256, (2, 3))
    slope = np.linspace(0, 1, width)[None, :, None] * np.linspace(1, 0.5, height)[:, None, None]
    blended = first + (second - first) * slope + rng.normal(0, 8, (height, width, 3))
    return np.clip(blended, 0, 255).astype(np.uint8)


def encoded(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    """A file's bytes, of an array or a PIL image."""
    stream = BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, kind, **options)
    return stream.getvalue()
