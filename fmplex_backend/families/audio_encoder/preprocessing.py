"""From samples to what a Whisper encoder takes, as the model's own feature extractor computes it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from fmplex_backend.errors import InvalidRequest
from fmplex_backend.families.audio_encoder.clips import RATE, Array, check_samples, check_seconds, decoded
from fmplex_backend.families.audio_encoder.spectrum import Spectrum, extracted

FRAMES = 2  # of features, that become a token: the second convolution has this stride


@dataclass(frozen=True, slots=True)
class Frames:
    """A clip, or a part of one, as the backbone takes it: log-mel features [bins, FRAMES * length], float32.

    Args:
        own: tokens of the clip itself; those after are of silence, which the clip's tokens attend to and no decoder
            reads.
        length: tokens in all.
    """

    data: bytes
    own: int
    length: int

    @property
    def values(self) -> npt.NDArray[np.float32]:
        return np.frombuffer(self.data, dtype=np.float32).reshape(-1, FRAMES * self.length)

    @property
    def key(self) -> Hashable:
        """All that its hidden states depend on."""
        return self.own, self.data

    @property
    def bytes(self) -> int:
        """Of memory."""
        return len(self.data)


class Preprocessor:
    """A Hugging Face feature extractor on one clip at a time.

    Args:
        extractor: Whisper's.
        window: tokens that the backbone has positions for.
        most: seconds of a request's clips together.
    """

    def __init__(self, extractor: Any, window: int, most: float) -> None:
        self.extractor, self.window, self.most = extractor, window, most
        self.samples_per_token = FRAMES * int(extractor.hop_length)
        self.margin = FRAMES * int(extractor.n_fft)  # zeros after the last frame: the transform mirrors the end
        self.spectrum = Spectrum.of(extractor)

    def read(self, samples: Array, silence: float) -> list[Frames]:
        """Samples [n] -> one row; of a clip longer than the window, equal parts, a row each."""
        parts = ceil(len(samples) / (self.window * self.samples_per_token))
        length = ceil(len(samples) / parts)
        cut = [samples[start : start + length] for start in range(0, len(samples), length)]
        return [self._frames(part, silence) for part in cut]

    def _frames(self, samples: Array, silence: float) -> Frames:
        own = ceil(len(samples) / self.samples_per_token)
        length = min(self.window, own + round(silence * RATE / self.samples_per_token))
        # The extractor's own features of the whole window, as far as they are read: what follows is as silent. Only at
        # the end of the window itself does it reflect what is before.
        margin = 0 if length == self.window else self.margin
        if self.spectrum is not None and margin:
            return Frames(self.spectrum.features(samples, FRAMES * length).tobytes(), own, length)
        found = extracted(self.extractor, samples, length * self.samples_per_token + margin)
        features = np.ascontiguousarray(found[:, : FRAMES * length], dtype=np.float32)
        return Frames(features.tobytes(), own, length)


class AudioReader:
    """The backbone's preprocessor with a task's section."""

    def __init__(self, takes: str, preprocessor: Preprocessor, silence: float) -> None:
        self.takes, self.preprocessor, self.silence = takes, preprocessor, silence

    def encode(self, value: Any) -> list[list[Frames]]:
        """AUDIO_BYTES [n, 1] or AUDIO [n, samples] -> rows of each clip; raises InvalidRequest."""
        clips = _expect_samples(value) if self.takes == "AUDIO" else np.asarray(value, np.object_).reshape(-1)
        if not len(clips):
            raise InvalidRequest(f"{self.takes} holds no clips; send a first dimension of at least 1")
        left, rows = self.preprocessor.most, []
        for position, clip in enumerate(clips):
            try:
                samples = self._samples(clip, left)
            except ValueError as error:
                raise InvalidRequest(f"{self.takes}[{position}]: {error}") from None
            left -= len(samples) / RATE
            rows.append(self.preprocessor.read(samples, self.silence))
        return rows

    def _samples(self, clip: Any, most: float) -> Array:
        if self.takes != "AUDIO":
            return decoded(clip if isinstance(clip, bytes) else str(clip).encode("utf-8", "surrogateescape"), most)
        samples: Array = clip
        check_samples(samples)
        check_seconds(len(samples) / RATE, most)
        return samples


def _expect_samples(value: Any) -> npt.NDArray[Any]:
    samples = np.asarray(value)
    if samples.ndim != 2 or samples.dtype != np.float32:
        raise InvalidRequest(f"AUDIO is {samples.dtype} {list(samples.shape)}; send float32 [n, samples]")
    return samples
