"""Whisper's log-mel features, computed for the part of a window that is not silent.

transformers' extractor computes all of what it is given, silence too, and copies it several times. These features take
less time, and are used where they are equal to its own up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from fmplex_backend.families.audio_encoder.clips import RATE, Array

Features = npt.NDArray[np.float32]  # [bins, frames]
LEAST, SILENT = 1e-10, -10.0  # of a power, and its logarithm
RANGE = 8.0  # decades below the loudest
CLOSE = 1e-5  # to the extractor's own features
PROBE_S = (0.013, 0.5)  # clips of noise


@dataclass(frozen=True, slots=True)
class Spectrum:
    """An extractor's transform.

    Args:
        window: [n_fft].
        filters: [bins, n_fft / 2 + 1].
        hop: samples from one frame to the next.
    """

    window: Tensor
    filters: Tensor
    hop: int

    @classmethod
    def of(cls, extractor: Any) -> Spectrum | None:
        """None where the extractor's own features are others."""
        window = torch.hann_window(int(extractor.n_fft))
        filters = torch.from_numpy(np.ascontiguousarray(np.asarray(extractor.mel_filters).T, dtype=np.float32))
        found = cls(window, filters, int(extractor.hop_length))
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, RATE).astype(np.float32)
        for seconds in PROBE_S:
            samples = noise[: round(seconds * RATE)]
            frames = len(samples) // found.hop + 10
            own = extracted(extractor, samples, frames * found.hop + 2 * len(window))[:, :frames]
            if not np.allclose(found.features(samples, frames), own, atol=CLOSE):
                return None
        return found

    def features(self, samples: Array, frames: int) -> Features:
        """Samples [n] -> the features of the first frames, those behind the clip of silence."""
        size, hop = len(self.window), self.hop
        heard = (len(samples) + size // 2) // hop + 1  # a frame reaches half the window to each side
        with torch.inference_mode():
            # The extractor mirrors the beginning; behind the end it has zeros.
            begun = functional.pad(torch.from_numpy(samples), (0, max(0, size // 2 + 1 - len(samples))))
            mirrored = functional.pad(begun[None], (size // 2, 0), mode="reflect")[0]
            missing = (heard - 1) * hop + size - len(mirrored)
            padded = functional.pad(mirrored, (0, max(0, missing)))
            transformed = torch.stft(padded, size, hop, window=self.window, center=False, return_complex=True)
            powers = torch.view_as_real(transformed[:, :heard]).square().sum(dim=-1)
            loudness = (self.filters @ powers).clamp_(min=LEAST).log10_()  # [bins, heard]
            # The loudest of all frames counts, be it behind those that are read; silence is as loud as LEAST.
            least = max(float(loudness.max()), SILENT) - RANGE
            found = torch.full((len(self.filters), frames), max(SILENT, least))
            read = min(heard, frames)
            found[:, :read] = loudness[:, :read].clamp_(min=least)
            return found.add_(4.0).div_(4.0).numpy()


def extracted(extractor: Any, samples: Array, length: int) -> Features:
    """The extractor's own features of samples that are filled up with silence."""
    found: Features = extractor(
        samples, sampling_rate=RATE, padding="max_length", max_length=length, return_tensors="np"
    )["input_features"][0]
    return found
