"""Loading a Hugging Face model and what prepares its inputs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fmplex_backend.errors import BackboneRefused
from fmplex_backend.families.model_files import find_model
from fmplex_backend.families.precision import chosen_dtype
from fmplex_backend.repository.parameters import BackboneConfig


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The model on its device, in eval mode and frozen."""

    model: Any
    reader: Any  # a tokenizer, an image processor
    directory: Path


def load_model(
    config: BackboneConfig,
    file: Path,
    device: torch.device,
    *,
    read: Callable[[Path], Any],
    configured: Callable[[Path], Any] | None = None,
    part: Callable[[Any], Any] = lambda whole: whole,
    unread: Callable[[Any], str] = lambda model: "pooler.",
    loader: Any = None,
) -> LoadedModel:
    """Load it; raises BackboneRefused naming `file`.

    Args:
        read: loads what prepares the model's inputs, from its directory.
        configured: reads the model's config, from its directory; transformers' AutoConfig by default.
        part: of a model's config, that of the part which is the backbone.
        loader: the class of the model; transformers' AutoModel by default.
        unread: of the model, how the names of weights begin that may be missing, since nobody reads what they make.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # it would fill the server's log
    transformers_logging.set_verbosity_error()  # so would lists of weights that are left out; a lack is an error here
    if device.type == "cpu":
        torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
    directory = find_model(config.model, file)
    try:
        reader = read(directory)
        whole = (configured or AutoConfig.from_pretrained)(directory)
        stored = getattr(whole, "dtype", None)
        model, loading = (loader or AutoModel).from_pretrained(
            directory,
            config=part(whole),
            dtype=chosen_dtype(config.dtype, device, stored),
            output_loading_info=True,
        )
    except Exception as error:  # transformers' errors have no base class of their own
        raise BackboneRefused(
            file,
            "parameters.model",
            f"transformers cannot load {config.model!r}: {error}",
            "Check the directory",
        ) from error
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith(unread(model)))
    if missing:
        raise BackboneRefused(
            file,
            "parameters.model",
            f"the weights of {config.model!r} lack {', '.join(missing[:5])}: transformers would start them at random",
            "Copy the whole model",
        )
    return LoadedModel(model, reader, directory)


def on_device(model: Any, device: torch.device) -> Any:
    """In eval mode and frozen."""
    return model.to(device).eval().requires_grad_(False)
