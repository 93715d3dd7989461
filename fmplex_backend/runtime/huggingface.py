"""Finding and loading a Hugging Face encoder: a hub id, a directory, or `package:<module>`."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fmplex_backend.config import BackboneConfig
from fmplex_backend.errors import BackboneRefused

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadedBackbone:
    """The model on its device, in eval mode and frozen."""

    model: Any
    tokenizer: Any
    directory: Path
    max_length: int  # tokens, specials included


def load_backbone(config: BackboneConfig, file: Path, device: torch.device) -> LoadedBackbone:
    """Load model and tokenizer; raises BackboneRefused naming `file`."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # a server's log is no terminal
    if device.type == "cpu":
        torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
    directory = find_model(config.model, file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model, loading = AutoModel.from_pretrained(directory, dtype=DTYPES[config.dtype], output_loading_info=True)
    except Exception as error:  # transformers raises whatever fits
        raise BackboneRefused(
            file,
            "parameters.model",
            f"transformers cannot load {config.model!r}: {error}",
            "Check the directory",
        ) from error
    made_up = sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))  # nothing reads it
    if made_up:
        raise BackboneRefused(
            file,
            "parameters.model",
            f"the weights of {config.model!r} lack {', '.join(made_up[:5])}: transformers would make them up",
            "Copy the whole model",
        )
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
            f"{config.model!r} ({model.config.model_type}) is no text encoder",
            "Name an encoder, e.g. BERT, RoBERTa, MPNet, DistilBERT or ModernBERT",
        )
    model = model.to(device).eval().requires_grad_(False)
    return LoadedBackbone(model, tokenizer, directory, _max_length(config, file, tokenizer, model))


def find_model(model: str, file: Path) -> Path:
    """The directory a `model` parameter means; a hub id is fetched (or found in the hub's cache)."""
    if model.startswith("package:"):
        return _in_package(model.removeprefix("package:"), file)
    path = Path(model) if Path(model).is_absolute() else file.parent / model
    if path.is_dir():
        return path
    if Path(model).is_absolute() or model.startswith("."):
        raise BackboneRefused(file, "parameters.model", f"{path} is no directory", "Correct the path")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, ignore_patterns=["*.onnx", "*.h5", "*.msgpack", "*.ot"]))
    except Exception as error:  # the hub's client raises whatever its transport raises
        raise BackboneRefused(
            file,
            "parameters.model",
            f"{model!r} is neither a directory nor to be had from the hub: {error}",
            "Give a directory, package:<module>, or a hub id this machine can reach",
        ) from error


def _in_package(name: str, file: Path) -> Path:
    """The model's folder inside an installed package, found without importing the package."""
    try:
        spec = importlib.util.find_spec(name) if name else None
    except ImportError:  # a.b where there is no a
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise BackboneRefused(file, "parameters.model", f"the package {name!r} is not installed", f"pip install {name}")
    root = Path(next(iter(spec.submodule_search_locations)))
    folders = sorted((found.parent for found in root.rglob("config.json")), key=lambda path: len(path.parts))
    for folder in folders:
        if any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin")):
            return folder
    raise BackboneRefused(
        file,
        "parameters.model",
        f"the package {name!r} holds no model",
        "Name a package with config.json and weights",
    )


def _max_length(config: BackboneConfig, file: Path, tokenizer: Any, model: Any) -> int:
    positions = getattr(model.config, "max_position_embeddings", None) or 512
    if model.config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= model.config.pad_token_id + 1  # these number positions from behind the padding's
    longest = min(positions, tokenizer.model_max_length)
    if config.max_length > longest:
        raise BackboneRefused(
            file,
            "parameters.max_length",
            f"{config.max_length} is more than the model's {longest}",
            "Lower it",
        )
    return config.max_length or longest
