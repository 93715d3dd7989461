"""Clips to measure with: no two alike, since rows with the same features run once."""

from __future__ import annotations

import numpy as np

from fmplex_backend.families.audio_encoder.clips import RATE, Clip
from fmplex_backend.families.audio_encoder.sections import SILENCE

TOKEN = 320  # samples


def clips_of_about(tokens: int, count: int, seed: int) -> list[Clip]:
    """So many clips of tones with noise, of about so many tokens with their silence; the same for a seed."""
    rng = np.random.default_rng(seed)
    silence = round(SILENCE * RATE / TOKEN)
    times = np.arange(max(1, tokens - silence) * TOKEN) / RATE
    pitches = rng.uniform(80, 1200, (count, 2))
    waves = [np.sin(2 * np.pi * first * times) + np.sin(2 * np.pi * second * times) for first, second in pitches]
    return [Clip((wave / 8 + rng.normal(0, 0.02, len(times))).astype(np.float32)) for wave in waves]
