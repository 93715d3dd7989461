"""A text encoder's passes, as they are recorded: with padding and without."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fmplex_backend.families.recorded import LONGEST, RecordedForward, Way, repays

# Weights, embeddings included, beyond which recordings are not worth their time at load. In bfloat16 with AMX, on one
# core, a BERT of 1.07e9 takes 13 s to record and compare, and passes of 13 texts of 16 tokens take 0.93 of the time
# then (one of 0.33e9: 5 s and 0.90). In float32 one of 0.33e9 takes 14 s and 0.996.
LARGE_TEXTS = 1 << 30


def recorded_texts(model: nn.Module, max_length: int) -> RecordedForward | None:
    """The recordings of a model, by whether rows are padded; None where the model is large.

    They take [n, t] ids, and a mask [n, t] of what is no padding, and make states [n, t, h].

    Args:
        max_length: of the model's inputs, in tokens.
    """
    if not repays(model, LARGE_TEXTS):
        return None
    longest = min(max_length, LONGEST)
    shapes = [(rows, min(tokens, longest)) for rows, tokens in ((3, 5), (1, 1), (4, 9), (1, longest))]
    encoder: Any = model

    def states(ids: Tensor) -> Tensor:
        found: Tensor = encoder(input_ids=ids).last_hidden_state
        return found

    def masked(ids: Tensor, mask: Tensor) -> Tensor:
        # [n, 1, t, t]: one of [n, t] the model's Python would look at, and a recording fix what it saw
        found: Tensor = encoder(
            input_ids=ids, attention_mask=mask[:, None, None].expand(-1, 1, ids.shape[1], -1)
        ).last_hidden_state
        return found

    def plain(ids: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return found

    def sample(rows: int, tokens: int) -> tuple[Tensor]:
        return ((1 + torch.arange(rows * tokens)).view(rows, tokens) % encoder.config.vocab_size,)

    def padded_sample(rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        lengths = tokens - torch.arange(rows) % tokens
        return *sample(rows, tokens), torch.arange(tokens) < lengths[:, None]

    ways = {
        False: Way("without padding", states, sample, shapes),
        True: Way("with padding", masked, padded_sample, shapes, plain, lambda found, ids, mask: found[mask]),
    }
    return RecordedForward(model, ways, longest)
