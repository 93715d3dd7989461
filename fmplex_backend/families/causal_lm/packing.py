"""Attention while a task is fitted: sequences side by side in one row, each of which sees itself alone.

As when serving it stands under transformers' own modules, by their registry of attention functions, so that every
model that is served can be fitted; nothing is kept between two passes, and gradients flow.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

NAME = "fmplex_sequences"


class _CurrentPass(threading.local):
    starts: Sequence[int] = ()


_current = _CurrentPass()


@contextmanager
def sequences(starts: Sequence[int]) -> Iterator[None]:
    """The passes that this thread runs inside have sequences that begin there; the last number is the end."""
    _current.starts = starts
    try:
        yield
    finally:
        _current.starts = ()


def put_attention(model: Any) -> None:
    """Let a model, maybe with an adapter around it, use this attention. Its modules must be nobody else's."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    whole.set_attn_implementation(NAME)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it. query: [1, heads, tokens, width], key and value: [1, kv heads, tokens, width].

    What else models hand over is looked at where they are loaded: see `attention.attend`.
    """
    if not _current.starts or _current.starts[-1] != query.shape[2]:
        raise RuntimeError("attention is asked for outside of a pass over sequences")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    found = [
        _one(
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            scaling,
            sliding_window,
            softcap,
        )
        for start, end in pairwise(_current.starts)
    ]
    return torch.cat(found, dim=2).transpose(1, 2), None


def _one(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None, softcap: float | None
) -> Tensor:
    """One sequence: [1, heads, t, width]."""
    length = query.shape[2]
    if softcap is None and (window is None or length <= window):
        return functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
    places = torch.arange(length, device=query.device)
    seen = places <= places[:, None]
    if window is not None:
        seen &= places > places[:, None] - window
    copies = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(copies, dim=1).mT * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
    return weights.to(value.dtype) @ value.repeat_interleave(copies, dim=1)
