"""MOMENT: a T5 encoder over patches of one channel, pretrained by masked patches; each head is a linear layer.

The code is of the package momentfm: `MOMENTPipeline`. Its states are those of `embed`: patches that are not observed
whole hold a mask, and nothing attends to them. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODEL_TYPE = "moment"  # which its config.json does not say
MODULE, CLASS, CONFIG = "fmplex_backend.families.time_series.moment_model", "Loader", "MomentConfig"
INSTALL = "pip install --no-deps momentfm==0.1.4 && pip install 'fmplex[moment]'"


def is_moment(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of MOMENT: it has its T5's config in it, and names no type of its own."""
    return "model_type" not in config and isinstance(config.get("t5_config"), dict) and "patch_len" in config


def width(config: Mapping[str, Any]) -> int | None:
    """Of its states; the published configs have no `d_model` beside that of their T5."""
    found = config.get("d_model") or config["t5_config"].get("d_model")
    return found if isinstance(found, int) else None


def refused(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """A field of a config.json that is not read here, and why; None where there is none."""
    if (kind := config.get("transformer_type")) != "encoder_only":
        return "transformer_type", f"it is {kind}, and states are those of an encoder alone"
    if config.get("patch_stride_len") != config["patch_len"]:
        return "patch_stride_len", "its masks are of patches that do not overlap"
    if config.get("revin_affine"):
        return "revin_affine", "heads here take level and scale alone"
    return None


def sizes(config: Any) -> tuple[int, int, int]:
    """Steps of the context, of a patch, and from one patch to the next."""
    return int(config.seq_len), int(config.patch_len), int(config.patch_stride_len)


def states(model: Any, values: Any, observed: Any) -> tuple[Any, Any, Any]:
    """[n, context, 1] and what of it was observed -> tokens [n, 1, t, d], location and scale [n, 1]."""
    tokens = model.embed(values.mT, observed[..., 0].to(values.dtype))
    normalizer = model.normalizer  # keeps those of the pass
    return tokens, normalizer.mean[..., 0], normalizer.stdev[..., 0]
