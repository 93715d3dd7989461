"""Heads on the vectors of a series' patches while they are trained, in torch. Imported only when a task is fitted.

They see [n, channels, t * d + 2] (see `Anatomy.read`), give [n, channels, outputs + 2], and share their weights among
channels. What they give is scaled; the level and the scale of the channel come behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fmplex_backend.decoders.trainable import Layers, TrainableHead
from fmplex_backend.families.time_series.architectures import PATCHES
from fmplex_backend.families.time_series.patching import Patching

MOST_DEVIATIONS = 10.0  # of a target from the level of what was before it, in its scale: a flat line has hardly a scale


class ChannelLayers(Layers):
    """Linear layers on each channel; level and scale pass them by."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, w + 2] -> [n, c, outputs + 2]."""
        return torch.cat([super().forward(x[..., :-2]), x[..., -2:]], dim=-1)


def stacked(targets: Sequence[Any]) -> Tensor:
    """Futures [horizon, c] -> [n, c, horizon]."""
    return torch.from_numpy(np.stack([target.T for target in targets]).astype(np.float32))


def scaled(level_and_scale: Tensor, targets: Tensor, most: float = MOST_DEVIATIONS) -> Tensor:
    """[n, c, 2] and [n, c, horizon] -> the latter as heads give it, at most so far from 0; NaN where unknown."""
    level, scale = level_and_scale[..., :1], level_and_scale[..., 1:]
    return ((targets - level) / scale).clamp(-most, most)


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


# -- heads on the vector of each patch


class PatchLayers(Layers):
    """Linear layers on each token; level and scale pass them by."""

    def __init__(self, widths: Sequence[int], activation: str, dropout: float) -> None:
        super().__init__(widths, activation, dropout)
        self.width = widths[0]

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, t * d + 2] -> [n, c, t * patch + 2]."""
        pieces = super().forward(tokens_of(x, self.width))
        return torch.cat([pieces.flatten(2), x[..., -2:]], dim=-1)


def tokens_of(x: Tensor, width: int) -> Tensor:
    """[n, c, t * d + 2] -> [n, c, t, d]."""
    found: Tensor = x[..., :-2].unflatten(-1, (-1, width))
    return found


def imputing(width: int, hidden: Sequence[int], cut: Patching, activation: str, dropout: float) -> TrainableHead:
    """A head that says the values of a token's patch; it is compared with those that are known to be missing.

    Args:
        width: of a token.
    """
    module = PatchLayers((width, *hidden, cut.patch), activation, dropout)

    def pieces(level_and_scale: Tensor, targets: Tensor, count: int) -> Tensor:
        """[n, c, steps] -> those of each token [n, c, t, patch], scaled; NaN where unknown."""
        least = cut.patch + cut.stride * (count - cut.extra - 1)
        whole = nn.functional.pad(targets, (max(0, least - targets.shape[-1]), 0), value=torch.nan)[..., -least:]
        found = scaled(level_and_scale, whole).unfold(-1, cut.patch, cut.stride)
        return nn.functional.pad(found, (0, 0, cut.extra, 0), value=torch.nan)

    def loss(values: Tensor, targets: Tensor) -> Tensor:
        if values.dim() == 3:
            found = values[..., :-2].unflatten(-1, (-1, cut.patch))
            values, targets = found, pieces(values[..., -2:], targets, found.shape[2])
        return squared_error(values.flatten(0, -2), targets.flatten(0, -2))

    def in_tokens(vectors: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        tokens = tokens_of(vectors, width)
        return tokens.flatten(0, 2), pieces(vectors[..., -2:], targets, tokens.shape[2]).flatten(0, 2)

    return TrainableHead(module, reads=PATCHES, loss=loss, stack=padded, apart=in_tokens)


def padded(targets: Sequence[Any]) -> Tensor:
    """[steps, c] each -> [n, c, steps] of the longest, which end together."""
    longest = max(len(target) for target in targets)
    found = np.full((len(targets), targets[0].shape[1], longest), np.nan, dtype=np.float32)
    for place, target in enumerate(targets):
        found[place, :, longest - len(target) :] = target.T
    return torch.from_numpy(found)
