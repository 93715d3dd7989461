"""Whisper's encoder on clips of any length: transformers' own modules, over as many positions as there are tokens.

transformers' forward takes windows of 30 seconds alone. Its positions are sinusoids, so those of a shorter window are
the first ones of the whole; with these, an encoder whose config says that window computes just the same. Rows of a pass
are as long as the longest of them: features after a row's end are 0, as the convolutions' own padding is, and attention
leaves these tokens out, so that a row's states are those that it has alone.
"""

from __future__ import annotations

import copy
import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LEFT_OUT = -1e4  # added to attention's scores; within float16


def encoder_states(model: Any, features: Tensor, lengths: Tensor | None = None) -> Tensor:
    """[n, bins, 2t], and the tokens of each row, None where all have t -> [n, t, h].

    Args:
        model: a WhisperEncoder, or one with an adapter around it.
    """
    states = functional.gelu(model.conv1(features))
    # In the order of its dims: of a transposed view each norm makes a copy, and each sum reads two orders.
    states = functional.gelu(model.conv2(states)).transpose(1, 2).contiguous()
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


class Attention(nn.Module):
    """A WhisperAttention of the encoder, without the copies that transformers makes of queries, keys and values.

    A frozen one. The products are torch's own, as transformers calls them; results are the same.
    """

    def __init__(self, base: Any) -> None:
        super().__init__()
        object.__setattr__(self, "base", base)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = base.q_proj, base.k_proj, base.v_proj, base.out_proj
        self.width, self.scaling = base.head_dim, base.scaling

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> tuple[Tensor, None]:
        """[n, t, h] -> the same shape; and no weights of attention."""
        heads = (*hidden_states.shape[:-1], -1, self.width)
        queries, keys, values = (
            each.view(heads).transpose(1, 2)
            for each in (
                self.q_proj(hidden_states) * self.scaling,
                self.k_proj(hidden_states),
                self.v_proj(hidden_states),
            )
        )
        found = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=attention_mask, scale=1.0)
        answer: Tensor = self.out_proj(found.transpose(1, 2).flatten(2))
        return answer, None

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """transformers' own: who copies a module may train it."""
        copied: nn.Module = copy.deepcopy(self.__dict__["base"], memo)
        return copied


def copy_less(model: Any) -> None:
    """Replace the attentions of a frozen encoder, where transformers' layers take such."""
    if _without_head_mask() or model.config._attn_implementation != "sdpa":
        return
    for layer in model.layers:
        layer.self_attn = Attention(layer.self_attn)


@cache
def _without_head_mask() -> dict[str, None]:
    """transformers before 4.57 has a third argument that must be given."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

    given = inspect.signature(WhisperEncoderLayer.forward).parameters
    return {"layer_head_mask": None} if "layer_head_mask" in given else {}
