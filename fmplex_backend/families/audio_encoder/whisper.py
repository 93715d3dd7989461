"""Whisper's encoder on clips of any length: transformers' own modules, over as many positions as there are tokens.

transformers' forward takes windows of 30 seconds alone. Its positions are sinusoids, so those of a shorter window are
the first ones of the whole; with these, an encoder whose config says that window computes just the same. Rows of a pass
are as long as the longest of them: features after a row's end are 0, as the convolutions' own padding is, and attention
leaves these tokens out, so that a row's states are those that it has alone.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LEFT_OUT = -1e4  # added to attention's scores; within float16


def encoder_states(model: Any, features: Tensor, lengths: Tensor | None) -> Tensor:
    """[n, bins, 2t], and the tokens of each row, None where all have t -> [n, t, h].

    Args:
        model: a WhisperEncoder, or one with an adapter around it.
    """
    states = functional.gelu(model.conv1(features))
    states = functional.gelu(model.conv2(states)).transpose(1, 2)
    states = states + model.embed_positions.weight[: states.shape[1]]
    mask = None
    if lengths is not None:
        left_out = ~kept(lengths, states.shape[1])
        mask = torch.zeros(left_out.shape, dtype=states.dtype, device=states.device)
        mask = mask.masked_fill(left_out, LEFT_OUT)[:, None, None, :].expand(-1, 1, states.shape[1], -1)
    for layer in model.layers:
        found = layer(states, mask, **_without_head_mask())
        states = found[0] if isinstance(found, tuple) else found
    normal: Tensor = model.layer_norm(states)
    return normal


def kept(lengths: Tensor, most: int) -> Tensor:
    """[n] -> [n, most]: which tokens are within."""
    return torch.arange(most, device=lengths.device) < lengths[:, None]


@cache
def _without_head_mask() -> dict[str, None]:
    """transformers before 4.57 has a third argument that must be given."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

    given = inspect.signature(WhisperEncoderLayer.forward).parameters
    return {"layer_head_mask": None} if "layer_head_mask" in given else {}
