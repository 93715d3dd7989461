"""Features that are computed for what is heard alone are those of the extractor, of the whole window."""

from __future__ import annotations

import numpy as np
import pytest
from audio_fixtures import RATE, Array, clip
from transformers import WhisperFeatureExtractor

from fmplex_backend.families.audio_encoder.spectrum import Spectrum

EXTRACTOR = WhisperFeatureExtractor()
HOP = EXTRACTOR.hop_length


def click(samples: int, place: int) -> Array:
    """Silence but for one sample."""
    found = np.zeros(samples, dtype=np.float32)
    found[place] = 0.9
    return found


@pytest.mark.parametrize(
    "samples",
    [
        clip(0, 2.0),
        clip(1, 0.0101),
        clip(2, 1 / RATE),
        np.zeros(RATE, dtype=np.float32),
        click(8000, 0),
        click(8000, 7999),  # the loudest frame is behind the clip
        click(320, 319),
        np.full(4000, 1e-7, dtype=np.float32),
    ],
    ids=["tone", "short", "one sample", "silence", "click", "click at the end", "short click", "faint"],
)
@pytest.mark.parametrize("behind", [0, 1, 100])
def test_features_are_those_of_the_whole_window(samples: Array, behind: int) -> None:
    spectrum, frames = Spectrum.of(EXTRACTOR), -(-len(samples) // (2 * HOP)) * 2 + behind
    assert spectrum is not None
    whole = EXTRACTOR(samples, sampling_rate=RATE, return_tensors="np")["input_features"][0]
    found = spectrum.features(samples, frames)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, whole[:, :frames], atol=2e-6)


def test_an_extractor_whose_features_are_others_is_asked_itself() -> None:
    assert Spectrum.of(WhisperFeatureExtractor(dither=0.1)) is None
