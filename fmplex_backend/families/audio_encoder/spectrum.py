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
        heard = (len(samples) + len(self.window) // 2) // self.hop + 1  # a frame reaches half the window to each side
        with torch.inference_mode():
            padded = torch.from_numpy(self._padded(samples, heard))
            transformed = torch.stft(
                padded, len(self.window), self.hop, window=self.window, center=False, return_complex=True
            )
            squares = torch.view_as_real(transformed[:, :heard]).square_()
            powers = squares[..., 0] + squares[..., 1]  # torch's sum over so short a dim takes ten times as long
            loudness = (self.filters @ powers).clamp_(min=LEAST).log10_()  # [bins, heard]
            # The loudest of all frames counts, be it behind those that are read; silence is as loud as LEAST.
            least = max(float(loudness.max()), SILENT) - RANGE
            found = torch.full((len(self.filters), frames), max(SILENT, least))
            read = min(heard, frames)
            found[:, :read] = loudness[:, :read].clamp_(min=least)
            return found.add_(4.0).div_(4.0).numpy()

    def _padded(self, samples: Array, heard: int) -> Array:
        """What so many frames read: the extractor mirrors the beginning; behind the end it has zeros."""
        size, half = len(self.window), len(self.window) // 2
        padded = np.zeros(max((heard - 1) * self.hop, len(samples) - half, 1) + size, dtype=np.float32)
        padded[half : half + len(samples)] = samples
        padded[:half] = padded[half + 1 : 2 * half + 1][::-1]
        return padded


def extracted(extractor: Any, samples: Array, length: int) -> Features:
    """The extractor's own features of samples that are filled up with silence."""
    found: Features = extractor(
        samples, sampling_rate=RATE, padding="max_length", max_length=length, return_tensors="np"
    )["input_features"][0]
    return found
