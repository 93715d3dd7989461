"""Features are the model's own extractor's; what cannot be read is an invalid request."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from audio_fixtures import BINS, RATE, TOKEN, WINDOW, audio_runtime, clip, encoded, save_whisper

from fmplex_backend.errors import InvalidRequest
from fmplex_backend.families.audio_encoder.preprocessing import AudioReader, Preprocessor


@cache
def preprocessor() -> Preprocessor:
    return audio_runtime(save_whisper(Path(mkdtemp())), max_audio_seconds=30).preprocessor


@pytest.mark.parametrize("seconds", [1 / RATE, 0.02, 0.313, 1, 7.3, 8])
@pytest.mark.parametrize("silence", [0, 1, 30])
def test_features_are_the_first_of_the_extractors_whole_window(seconds: float, silence: float) -> None:
    samples = clip(1, seconds)
    (row,) = preprocessor().read(samples, silence)
    whole = preprocessor().extractor(samples, sampling_rate=RATE, return_tensors="np")["input_features"][0]
    assert whole.shape == (BINS, 2 * WINDOW)
    assert row.own == -(-len(samples) // TOKEN)
    assert row.length == min(WINDOW, row.own + round(silence * 50))
    np.testing.assert_allclose(row.values, whole[:, : 2 * row.length], atol=1e-6)
    assert row.bytes == 4 * BINS * 2 * row.length


@pytest.mark.parametrize(("seconds", "parts"), [(8.0, 1), (8.01, 2), (20, 3), (24, 3)])
def test_a_clip_beyond_the_window_is_cut_into_like_parts(seconds: float, parts: int) -> None:
    samples = clip(1, seconds)
    rows = preprocessor().read(samples, 1)
    assert len(rows) == parts
    assert max(row.own for row in rows) - min(row.own for row in rows) <= 1
    assert sum(row.own for row in rows) == pytest.approx(len(samples) / TOKEN, abs=parts)
    (last,) = preprocessor().read(samples[(parts - 1) * -(-len(samples) // parts) :], 1)
    assert rows[-1] == last


def test_files_and_samples_are_read_alike() -> None:
    clips = [clip(seed) for seed in range(3)]
    files, arrays = (AudioReader(takes, preprocessor(), 1) for takes in ("AUDIO_BYTES", "AUDIO"))
    sent = np.array([[encoded(each, subtype="FLOAT")] for each in clips], dtype=np.object_)
    one, other = files.encode(sent), arrays.encode(np.stack(clips))
    assert [[row.key for row in rows] for rows in one] == [[row.key for row in rows] for rows in other]
    assert one[0][0].key != one[1][0].key
    assert AudioReader("AUDIO", preprocessor(), 0).encode(np.stack(clips))[0][0].key != one[0][0].key


SECOND = np.zeros(RATE, np.float32)


@pytest.mark.parametrize(
    ("takes", "value", "says"),
    [
        ("AUDIO", np.zeros(10, np.float32), "send float32 [n, samples]"),
        ("AUDIO", np.zeros((1, 10), np.float64), "send float32 [n, samples]"),
        ("AUDIO", np.zeros((0, 10), np.float32), "no clips"),
        ("AUDIO", np.zeros((2, 0), np.float32), "AUDIO[0]: it is empty"),
        ("AUDIO", np.array([[0, 0], [0, np.nan]], np.float32), "AUDIO[1]: it has samples that are not finite"),
        ("AUDIO", np.array([[0, 30_000]], np.float32), "divided by 32768"),
        ("AUDIO", np.stack([np.zeros(16 * RATE, np.float32)] * 2), "AUDIO[1]: it has 16.0 s, and 14.0 s are left"),
        ("AUDIO_BYTES", np.zeros((0, 1), np.object_), "no clips"),
        ("AUDIO_BYTES", np.array([[encoded(SECOND)], [b"x"]], np.object_), "AUDIO_BYTES[1]: it is no WAV"),
        ("AUDIO_BYTES", np.array([["text"]], np.object_), "AUDIO_BYTES[0]: it is no WAV"),
    ],
)
def test_what_cannot_be_read_is_an_invalid_request(takes: str, value: Any, says: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        AudioReader(takes, preprocessor(), 1).encode(value)
    assert says in str(raised.value)
