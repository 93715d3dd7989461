"""Chronos-Bolt: a T5 encoder over patches of one channel, and a decoder of one step that says all of the horizon.

The code is of the package chronos-forecasting: `ChronosBoltModelForForecasting`. The backbone is what its `encode`
needs; its decoder and output layer are the forecast head. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MODEL_TYPE = "chronos-bolt"  # its config.json says t5
MODULE, CLASS = "chronos.chronos_bolt", "ChronosBoltModelForForecasting"
HEAD = ("decoder", "output_patch_embedding")
TIED = {"decoder.embed_tokens.weight": "shared.weight"}  # files may have the latter alone
INSTALL = "pip install 'fmplex[chronos-bolt]'"


def sizes(config: Any) -> tuple[int, int, int]:
    """Steps of the context, of a patch, and from one patch to the next."""
    own = config.chronos_config
    return int(own["context_length"]), int(own["input_patch_size"]), int(own["input_patch_stride"])


def steps(config: Any) -> int:
    """That the head forecasts."""
    return int(config.chronos_config["prediction_length"])


def levels(config: Any) -> Sequence[float]:
    """Of its quantiles."""
    return [float(level) for level in config.chronos_config["quantiles"]]


def states(model: Any, values: Any, observed: Any) -> tuple[Any, Any, Any]:
    """[n, context, 1] and what of it was observed -> tokens [n, 1, t, d], location and scale [n, 1].

    The token [REG], where the model has one, comes first. The tokens of patches that hold nothing are 0, as none of the
    others is: the head must not read them.
    """
    import torch

    context = values[..., 0].masked_fill(~observed[..., 0], torch.nan)
    found, (location, scale), _, seen = model.encode(context=context)
    found = found * seen[..., None].to(found.dtype)
    if model.chronos_config.use_reg_token:
        found = found.roll(1, dims=1)
    return found[:, None], location, scale


def quantiles(module: Any, tokens: Any) -> Any:
    """[n, c, t, d] as `states` makes them -> [n, steps, c, 1 + levels], scaled: the median, and every level.

    Args:
        module: the model without its encoder.
    """
    import torch

    own = tokens.flatten(0, 1)
    if module.chronos_config.use_reg_token:
        own = own.roll(-1, dims=1)
    seen = (own != 0).any(dim=-1).to(own.dtype)
    found = module.output_patch_embedding(module.decode(own, seen, own))
    by_level = found.view(*tokens.shape[:2], module.num_quantiles, -1).permute(0, 3, 1, 2)
    median = module.chronos_config.quantiles.index(0.5)
    return torch.cat([by_level[..., median : median + 1], by_level], dim=-1)
