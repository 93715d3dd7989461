"""Loading a Hugging Face time-series model; other kinds, and those that need more than series, are refused."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fmplex_backend.errors import BackboneRefused
from fmplex_backend.families.fast_linears import speed_up
from fmplex_backend.families.huggingface import load_model, on_device
from fmplex_backend.families.model_files import find_model, model_config
from fmplex_backend.families.time_series.anatomy import Anatomy, class_of, import_needed, read_config, without_head
from fmplex_backend.families.time_series.architectures import ARCHITECTURES, Architecture, architecture_of, kind_of
from fmplex_backend.families.time_series.norms import fix_norms
from fmplex_backend.families.time_series.own_head import OwnHeads
from fmplex_backend.families.time_series.parameters import TimeSeriesConfig


@dataclass(frozen=True, slots=True)
class LoadedBackbone:
    """The model on its device, in eval mode and frozen."""

    model: Any
    anatomy: Anatomy
    own_heads: OwnHeads
    directory: Path


def load_backbone(config: TimeSeriesConfig, file: Path, device: torch.device) -> LoadedBackbone:
    """Load the model, and look at what it makes of a series; raises BackboneRefused naming `file`."""
    architecture = _architecture(config, file)
    in_float32 = config.model_copy(update={"dtype": "float32"})
    loaded = load_model(
        in_float32,
        file,
        device,
        read=lambda directory: None,
        configured=partial(read_config, architecture),
        part=lambda whole: served_config(whole, architecture),
        loader=class_of(architecture, architecture.forecaster) if architecture.package else None,
    )
    model = without_head(loaded.model, architecture) if architecture.package else loaded.model
    model = on_device(model, device)
    fix_norms(model, architecture)
    try:
        anatomy = Anatomy.of(model, architecture)
    except Exception as error:  # a model of another kind raises whatever it stumbles over
        problem = f"{config.model!r} does not read series: {type(error).__name__}: {error}"
        raise BackboneRefused(file, "parameters.model", problem, "Check its config.json") from error
    own_heads = OwnHeads(loaded.directory, anatomy, model.state_dict())  # before weights get an order of their own
    speed_up(model)
    return LoadedBackbone(model, anatomy, own_heads, loaded.directory)


def served_config(whole: Any, architecture: Architecture) -> Any:
    """Without the random masks of pretraining; where channels do not see each other, for one at a time, unless the
    model is loaded with its head, which may see more.
    """
    own = copy.deepcopy(whole)
    if hasattr(own, "do_mask_input"):
        own.do_mask_input = False
    if hasattr(own, "num_input_channels") and architecture.separates(own) and not architecture.package:
        own.num_input_channels = 1
    return own


def _architecture(config: TimeSeriesConfig, file: Path) -> Architecture:
    """Of the model, once what it needs is imported."""
    directory = find_model(config.model, file)
    found = model_config(directory, file)
    kind, architecture = kind_of(found), architecture_of(found)
    if architecture is None:
        raise BackboneRefused(
            file,
            "parameters.model",
            f"{config.model!r} is of the type {kind}",
            f"Name a model of the types {', '.join(ARCHITECTURES)}",
        )
    if refused := architecture.refused(found):
        field, reason = refused
        raise BackboneRefused(
            file, "parameters.model", f"{config.model!r} has {field}: {reason}", "Name a model without"
        )
    try:
        import_needed(architecture)
    except ImportError as error:
        problem = f"{config.model!r} ({kind}) needs a package that is not installed"
        raise BackboneRefused(file, "parameters.model", problem, f"Install it: {error}") from error
    return architecture
