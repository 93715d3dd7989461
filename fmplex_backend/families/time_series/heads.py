"""Heads on the vectors of a series' patches while they are trained, in torch. Imported only when a task is fitted.

They see [n, channels, t * d + 2] (see `Anatomy.read`), give [n, channels, outputs + 2], and share their weights among
channels. What they give is scaled; the level and the scale of the channel come behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmplex_backend.decoders.trainable import Layers

MOST_DEVIATIONS = 10.0  # of a target from the level of what was before it, in its scale: a flat line has hardly a scale


class ChannelLayers(Layers):
    """Linear layers on each channel; level and scale pass them by."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, w + 2] -> [n, c, outputs + 2]."""
        return torch.cat([super().forward(x[..., :-2]), x[..., -2:]], dim=-1)


def stacked(targets: Sequence[Any]) -> Tensor:
    """Futures [horizon, c] -> [n, c, horizon]."""
    return torch.from_numpy(np.stack([target.T for target in targets]).astype(np.float32))


def scaled(level_and_scale: Tensor, targets: Tensor) -> Tensor:
    """[n, c, 2] and [n, c, horizon] -> the latter as heads give it, NaN where unknown."""
    level, scale = level_and_scale[..., :1], level_and_scale[..., 1:]
    return ((targets - level) / scale).clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS)


def apart(vectors: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of all channels together: [n * c, w] and their scaled targets [n * c, horizon]."""
    return vectors[..., :-2].flatten(0, 1), scaled(vectors[..., -2:], targets).flatten(0, 1)


def squared_error(values: Tensor, targets: Tensor) -> Tensor:
    """The mean over all targets that are known.

    Args:
        values: of `ChannelLayers`, with targets as they are; or [m, horizon] with scaled ones.
    """
    if values.dim() == 3:
        values, targets = values[..., :-2], scaled(values[..., -2:], targets)
    known = ~targets.isnan()
    return (values - targets.nan_to_num())[known].square().mean()
