"""Clips in every form that people have them, damaged and hostile ones too."""

from __future__ import annotations

import random
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soxr
import torch
from audio_fixtures import RATE, clip, encoded

from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.audio_encoder.clips import Clip, clip_of, decoded

TONE = clip(1, 0.5)


@pytest.mark.parametrize(
    ("kind", "subtype", "close"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_U8", 1e-2),
        ("WAV", "FLOAT", 0),
        ("WAV", "ULAW", 0.05),
        ("WAVEX", "PCM_16", 1e-4),
        ("FLAC", "PCM_16", 1e-4),
        ("OGG", "VORBIS", 0.2),
    ],
)
def test_files_of_every_kind_have_their_samples(kind: str, subtype: str, close: float) -> None:
    found = decoded(encoded(TONE, kind=kind, subtype=subtype), 10)
    assert (found.dtype, found.shape) == (np.float32, TONE.shape)
    assert float(np.abs(found - TONE).max()) <= close


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 192_000])
def test_files_of_other_rates_are_resampled(rate: int) -> None:
    whole = clip(2, 1.3, rate=rate)
    found = decoded(encoded(whole, rate, subtype="FLOAT"), 10)
    want = soxr.resample(whole, rate, RATE)
    assert abs(len(found) - len(want)) <= 1
    np.testing.assert_allclose(found[: len(want)], want[: len(found)], atol=1e-4)


def test_channels_are_mixed() -> None:
    other = clip(3, 0.5)
    found = decoded(encoded(np.stack([TONE, other], axis=1), subtype="FLOAT"), 10)
    np.testing.assert_allclose(found, (TONE + other) / 2, atol=1e-6)


class Decoder:
    """A cell of an audio column as `datasets` 4 has it: torchcodec's AudioDecoder, as far as it is asked."""

    def __init__(self, data: Any, rate: Any = RATE) -> None:
        self.data, self.rate = data, rate

    def get_all_samples(self) -> Any:
        if self.data is None:
            raise RuntimeError("Failed to open input buffer\nat some place")
        return SimpleNamespace(data=torch.from_numpy(self.data), sample_rate=self.rate)


def test_every_form_of_a_clip_has_the_same_samples(tmp_path: Path) -> None:
    whole = np.round(TONE * 32767).astype(np.int16)
    file = tmp_path / "one.wav"
    file.write_bytes(encoded(whole))
    samples = (whole / 32768).astype(np.float32)
    forms: list[Any] = [
        str(file),
        file,
        file.read_bytes(),
        bytearray(file.read_bytes()),
        whole,
        samples,
        samples.astype(np.float64),
        (samples, RATE),
        {"array": samples, "sampling_rate": RATE},
        (samples, float(RATE)),
        (samples, np.int64(RATE)),
        {"path": "gone.wav", "bytes": file.read_bytes()},
        {"path": str(file), "bytes": None},
        {"path": str(file), "array": samples, "sampling_rate": float(RATE)},
        Decoder(samples[None]),
        Decoder(np.stack([samples * 0.5, samples * 1.5])),
        Clip(file),
    ]
    for form in forms:
        np.testing.assert_allclose(clip_of(form).samples(10), samples, atol=1e-7)
    assert clip_of(np.array([0, 128, 255], np.uint8)).samples(1).tolist() == [-1.0, 0.0, 127 / 128]
    slow = clip_of((TONE, 8_000))
    assert len(slow.samples(10)) == 2 * len(TONE)
    assert len(decoded(slow.content(), 10)) == 2 * len(TONE)


@pytest.mark.parametrize(
    "given", [3.5, "none.wav", np.zeros((2, 3), np.float32), [["a"]], {"array": None, "sampling_rate": 1}, None]
)
def test_what_is_no_clip_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"is no clip|there is no file"):
        clip_of(given)


@pytest.mark.parametrize(
    "given",
    [
        *((TONE, rate) for rate in (0, -1, 2**31, 8000.5, float("nan"), True, None)),
        {"array": TONE},
        {"array": TONE, "sampling_rate": "fast"},
        Decoder(TONE[None], 0),
    ],
    ids=["0", "negative", "2**31", "fraction", "nan", "bool", "None", "missing", "a word", "0 of a decoder"],
)
def test_a_rate_that_is_none_is_refused_by_name(given: Any) -> None:
    with pytest.raises(ValueError, match=r"its rate is .*; give|it has .* samples a second; send"):
        clip_of(given)


def test_a_column_whose_files_cannot_be_decoded_says_so() -> None:
    with pytest.raises(ValueError, match=r"it cannot be decoded: Failed to open input buffer$"):
        clip_of(Decoder(None))


def test_clips_are_known_by_what_they_hold(tmp_path: Path) -> None:
    file = tmp_path / "one.wav"
    file.write_bytes(encoded(TONE))
    assert clip_of(file) == clip_of(file.read_bytes())
    assert clip_of(TONE) == clip_of(TONE.copy()) != clip_of((TONE, 8_000))
    assert len({clip_of(TONE), clip_of(TONE.copy()), clip_of(clip(5))}) == 2
    assert (str(file), "0.50 s") == (clip_of(file).name, clip_of(TONE).name[-6:])
    file.unlink()
    with pytest.raises(TaskProblem, match=r"one\.wav cannot be read"):
        Clip(file).content()


def with_header(data: bytes, place: int, number: int, kind: str = "<I") -> bytes:
    """A WAV file with a field of its header changed."""
    changed = bytearray(data)
    struct.pack_into(kind, changed, place, number)
    return bytes(changed)


WAV = encoded(TONE)
HOSTILE = {
    "nothing": b"",
    "text": b"no audio",
    "a header alone": WAV[:44],
    "half a header": WAV[:30],
    "no samples": encoded(TONE[:0]),
    "a rate of 1": encoded(TONE, 1),
    "a rate of 4 million": encoded(TONE, 4_000_000),
    "a rate of 0": with_header(WAV, 24, 0),
    "200 channels": encoded(np.zeros((10, 200), np.float32)),
    "no channels": with_header(WAV, 22, 0, "<H"),
    "NaN": encoded(np.array([0, np.nan, 0], np.float32), subtype="FLOAT"),
    "infinite": encoded(np.array([0, -np.inf], np.float32), subtype="FLOAT"),
    "far too loud": encoded(np.array([0, 1e30], np.float32), subtype="FLOAT"),
    "hours long": encoded(np.zeros(RATE * 1200, np.int16), kind="FLAC"),
    "hours long at a low rate": encoded(np.zeros(2_000 * 1200, np.int16), 2_000),
    "FLAC, cut off": encoded(TONE, kind="FLAC")[:4000],
    "OGG, two in one": encoded(TONE, kind="OGG") + encoded(clip(3, 1), kind="OGG"),
    "of another kind": encoded(TONE, kind="AIFF"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_cannot_be_read_says_why(kind: str) -> None:
    with pytest.raises(ValueError, match=r"^it (is|has) "):
        decoded(HOSTILE[kind], 600)


def test_what_a_header_says_is_called_so() -> None:
    streamed = bytearray(encoded(TONE, kind="FLAC"))
    assert len(TONE) < 1 << 16
    streamed[24:26] = bytes(2)  # the last of the 36 bits that hold the number of frames; the others are 0
    with pytest.raises(ValueError, match=r"^its header does not say how long it is"):
        decoded(bytes(streamed), 600)
    for kind in ("hours long", "a rate of 4 million"):
        with pytest.raises(ValueError, match="by its header"):
            decoded(HOSTILE[kind], 600)
    with pytest.raises(ValueError, match="it has 2 streams"):
        decoded(HOSTILE["OGG, two in one"], 600)


def test_wav_and_ogg_files_that_are_cut_off_have_what_is_there() -> None:
    assert 0 < len(decoded(WAV[:8000], 10)) < len(TONE)
    ogg = encoded(clip(1, 5), kind="OGG")
    assert 0 < len(decoded(ogg[: 3 * len(ogg) // 4], 10)) < 5 * RATE
    assert len(decoded(with_header(WAV, 40, 1 << 31), 10)) <= len(TONE)


def test_arrays_are_checked_like_files() -> None:
    for samples in ([], [np.nan], [0.5, 40_000.0]):
        with pytest.raises(ValueError, match=r"^it (is|has) "):
            clip_of(np.array(samples, np.float32)).samples(10)
    with pytest.raises(ValueError, match="samples a second"):
        clip_of((TONE, 100)).samples(10)
    with pytest.raises(ValueError, match="max_audio_seconds"):
        clip_of(TONE).samples(0.4)


def test_memory_is_that_of_the_samples_and_a_block() -> None:
    """A small file of many channels at a high rate holds minutes: 96,000 frames a second of 8 channels."""
    data = encoded(np.zeros((96_000 * 60, 8), np.int16), 96_000, kind="FLAC")
    assert len(data) < 2_000_000
    tracemalloc.start()
    found = decoded(data, 60)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 60 * RATE
    assert peak < 4 * found.nbytes + (32 << 20)


def test_damaged_files_are_read_or_refused() -> None:
    rng = random.Random(0)
    for data in (WAV, encoded(TONE, kind="FLAC"), encoded(TONE, kind="OGG")):
        for _ in range(100):
            changed = bytearray(data)
            for _ in range(rng.randint(1, 8)):
                changed[rng.randrange(min(len(changed), rng.choice((64, 4096))))] = rng.randrange(256)
            with suppress(ValueError):
                assert np.isfinite(decoded(bytes(changed), 10)).all()
