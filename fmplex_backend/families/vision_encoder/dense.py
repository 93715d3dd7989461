"""Targets of pixels as the patches of a grid have them, and losses on these, in torch. Imported only when fitting."""

from __future__ import annotations

import torch
from torch import Tensor

from fmplex_backend.families.vision_encoder.maps import grid_of
from fmplex_backend.families.vision_encoder.masks import UNKNOWN

PICTURES = 64  # masks that are counted at a time, to bound memory


def label_shares(targets: Tensor, tokens: int, labels: int) -> Tensor:
    """Masks [n, h, w] -> the fraction of each patch's pixels that has each label [n, t, labels].

    They add up to the fraction that has a label. Patches without a pixel, of maps smaller than the grid, have 0.
    """
    cells = _cells(targets, tokens)
    sizes = torch.bincount(cells.flatten(), minlength=tokens).clamp_min(1)
    found = []
    for narrow in torch.split(targets, PICTURES):
        part = narrow.long()
        picture = torch.arange(len(part), device=part.device)[:, None, None] * tokens
        places = ((picture + cells) * labels + part)[part != UNKNOWN]
        counts = torch.bincount(places, minlength=len(part) * tokens * labels)
        found.append(counts.view(len(part), tokens, labels) / sizes[:, None])
    return torch.cat(found)


def means(targets: Tensor, tokens: int) -> Tensor:
    """Values [n, h, w] -> the mean of each patch and the fraction of its pixels that is known [n, t, 2]."""
    cells = _cells(targets, tokens).flatten()
    known = ~targets.isnan().flatten(1)
    empty = torch.zeros(len(targets), tokens, device=targets.device)
    sums = empty.index_add(1, cells, targets.flatten(1).nan_to_num())
    counts = empty.index_add(1, cells, known.float())
    sizes = torch.bincount(cells, minlength=tokens).clamp_min(1)
    return torch.stack([sums / counts.clamp_min(1), counts / sizes], dim=-1)


def cross_entropy(values: Tensor, shares: Tensor, class_weights: Tensor | None) -> Tensor:
    """The mean over pixels, each of which is given its patch's values; both [m, labels]."""
    weighted = shares if class_weights is None else shares * class_weights.to(shares.device)
    total: Tensor = -(weighted * values.log_softmax(dim=-1)).sum() / weighted.sum().clamp_min(1e-6)
    return total


def squared_error(values: Tensor, targets: Tensor) -> Tensor:
    """[m, 1] and [m, 2] of `means`: the mean over patches, by how much of them is known."""
    mean, weight = targets.unbind(dim=-1)
    total: Tensor = (weight * (values[:, 0] - mean).square()).sum() / weight.sum().clamp_min(1e-6)
    return total


def accuracy(values: Tensor, shares: Tensor) -> float:
    """The part of the labelled pixels that have their patch's best label; both [m, labels]."""
    right = shares.gather(1, values.argmax(dim=-1, keepdim=True)).sum()
    return float(right / shares.sum().clamp_min(1e-6))


def _cells(targets: Tensor, tokens: int) -> Tensor:
    """The number of the patch that each pixel of [n, h, w] lies in, [h, w]."""
    rows, columns = grid_of(tokens)
    height, width = targets.shape[1:]
    down = (2 * torch.arange(height, device=targets.device) + 1) * rows // (2 * height)
    across = (2 * torch.arange(width, device=targets.device) + 1) * columns // (2 * width)
    return down[:, None] * columns + across
