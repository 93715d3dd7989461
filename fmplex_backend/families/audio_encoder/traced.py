"""An audio encoder's passes, as they are recorded: of clips of one length, and of several."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fmplex_backend.families.audio_encoder.preprocessing import FRAMES
from fmplex_backend.families.audio_encoder.whisper import encoder_states, kept
from fmplex_backend.families.recorded import LONGEST, RecordedForward, Way, repays

SHAPES = ((3, 5), (1, 1), (4, 9))  # rows, tokens: what a layer does, it does for every length


def recorded_clips(model: Any) -> RecordedForward | None:
    """The recordings of an encoder, by whether rows are padded; None where the model is large.

    They take features [n, bins, FRAMES * t], and the tokens of each row [n], and make states [n, t, h].
    """
    if not repays(model):
        return None

    def states(features: Tensor) -> Tensor:
        return encoder_states(model, features)

    def padded(features: Tensor, lengths: Tensor) -> Tensor:
        return encoder_states(model, features, lengths)

    def sample(rows: int, tokens: int) -> tuple[Tensor]:
        shape = rows, model.config.num_mel_bins, FRAMES * tokens
        return (torch.randn(shape, generator=torch.Generator().manual_seed(tokens)).to(model.dtype),)

    def padded_sample(rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        lengths = tokens - torch.arange(rows) % tokens
        (features,) = sample(rows, tokens)
        return features * kept(FRAMES * lengths, FRAMES * tokens)[:, None], lengths

    ways = {
        False: Way("of clips of one length", states, sample, SHAPES),
        True: Way(
            "of clips of several lengths",
            padded,
            padded_sample,
            SHAPES,
            compared=lambda found, features, lengths: found[kept(lengths, found.shape[1])],
        ),
    }
    return RecordedForward(model, ways, min(model.config.max_source_positions, LONGEST))
