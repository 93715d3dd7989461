"""What decoders read of a pass's hidden states."""

from __future__ import annotations

import torch
from torch import Tensor

POOLINGS = ("cls", "max", "mean")


def pool(kind: str, states: Tensor, mask: Tensor | None) -> Tensor:
    """[n, t, h] -> float32 [n, h]; the states themselves for decoders that read every token.

    Args:
        mask: [n, t], what is no padding; None where nothing is.
    """
    if kind == "cls":
        return states[:, 0].float()
    if kind == "max":
        kept = states if mask is None else states.masked_fill(~mask[..., None], -torch.inf)
        return kept.amax(dim=1).float()
    if kind == "mean" and mask is None:
        return states.float().mean(dim=1)
    if kind == "mean" and mask is not None:
        weight = mask[..., None].float()
        return (states.float() * weight).sum(dim=1) / weight.sum(dim=1)
    return states
