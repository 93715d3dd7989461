"""Attention of transformers, but for when it needs no mask.

transformers reads the values of a mask to find out whether anything is padding, which on a GPU waits for all that is
queued there, and takes a mask for needed where a CUDA graph is captured. The runtime knows, and says so by `unpadded`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAME = "fmplex_sdpa"


class _CurrentPass(threading.local):
    unpadded = False


_current = _CurrentPass()


@contextmanager
def unpadded() -> Iterator[None]:
    """All rows of the passes that this thread runs inside are equally long."""
    _current.unpadded = True
    try:
        yield
    finally:
        _current.unpadded = False


def never_reading_masks(model: Any) -> None:
    """Let a model's scaled dot product attention use a mask of ones in an `unpadded` pass no more than none at all.

    The pass must have one: without, transformers looks for texts packed into one row. Models that do not take their
    attention from transformers' registry are left as they are.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation != "sdpa" or not model._can_set_attn_implementation():
        return

    def mask(
        *,
        q_length: int,
        kv_length: int,
        attention_mask: Any = None,
        local_size: int | None = None,
        allow_is_causal_skip: bool = True,
        allow_is_bidirectional_skip: bool = False,
        **others: Any,
    ) -> Any:
        skips = allow_is_bidirectional_skip or (allow_is_causal_skip and q_length == kv_length)
        whole = attention_mask is None or _current.unpadded
        if whole and skips and (local_size is None or kv_length < local_size):
            return None
        return sdpa_mask(
            q_length=q_length,
            kv_length=kv_length,
            attention_mask=attention_mask,
            local_size=local_size,
            allow_is_causal_skip=False,
            allow_is_bidirectional_skip=False,
            **others,
        )

    AttentionInterface.register(NAME, AttentionInterface()["sdpa"])
    AttentionMaskInterface.register(NAME, mask)
    model.set_attn_implementation(NAME)
