"""The inputs of audio encoders: AUDIO_BYTES (a file's bytes) and AUDIO (samples)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.audio_encoder.clips import (
    NO_LIMIT,
    RATE,
    SUFFIXES,
    Array,
    Clip,
    clip_of,
    is_cell,
    is_decoder,
    is_pair,
)
from fmplex_backend.interface import TensorSpec

PROBE_SAMPLES = 1600
T = TypeVar("T")


class _ClipInput:
    """Clips in any form; `Clip` is the item."""

    columns: Literal["one", "several"] = "one"
    default_column = "audio"
    files: Sequence[str] = SUFFIXES

    def is_item(self, data: Any) -> bool:
        if isinstance(data, (str, Path)):
            return Path(data).suffix.lower() in SUFFIXES
        if isinstance(data, np.ndarray):
            return data.ndim == 1 and data.dtype.kind in "fiu"
        if isinstance(data, tuple):
            return bool(data) and isinstance(data[0], np.ndarray) and is_pair(data)
        return isinstance(data, (Clip, bytes, bytearray)) or is_cell(data) or is_decoder(data)

    def item(self, cell: Any) -> tuple[Clip, list[tuple[int, int]]]:
        return clip_of(cell), []

    def parse(self, argument: str) -> Clip:
        try:
            return clip_of(argument)
        except ValueError as error:
            raise TaskProblem(str(error)) from None

    def probe(self, size: int | None) -> Clip:
        times = np.arange(size or PROBE_SAMPLES, dtype=np.float32) / RATE
        return Clip(np.sin(2 * np.pi * 440 * times, dtype=np.float32) / 2)

    def show(self, item: Any) -> str:
        return _clip(item).name


class AudioBytesInput(_ClipInput):
    """AUDIO_BYTES [1]: a WAV, FLAC or OGG file."""

    tensor = TensorSpec("AUDIO_BYTES", "TYPE_STRING", (1,))

    def array(self, items: Sequence[Any]) -> npt.NDArray[Any]:
        """[n, 1]."""
        cells = np.empty((len(items), 1), dtype=np.object_)
        cells[:, 0] = [_read(Clip.content, place, item) for place, item in enumerate(items)]
        return cells


class AudioInput(_ClipInput):
    """AUDIO [samples], float32 within -1 and 1, 16,000 a second; those of one request are of one length."""

    tensor = TensorSpec("AUDIO", "TYPE_FP32", (-1,))

    def array(self, items: Sequence[Any]) -> npt.NDArray[Any]:
        """[n, samples]."""
        found = [_read(_samples, place, item) for place, item in enumerate(items)]
        lengths = {len(each) for each in found}
        if len(lengths) > 1:
            shown = ", ".join(f"{length:,}" for length in sorted(lengths)[:4])
            raise TaskProblem(
                f"clips of one request must be of one length where the task reads AUDIO, these have {shown} samples. "
                "Ask one by one, or give the task the encoder AudioFile, which takes any"
            )
        return np.stack(found)


def _clip(item: Any) -> Clip:
    try:
        return clip_of(item)
    except ValueError as error:
        raise TaskProblem(f"the task reads audio: {error}") from None


def _samples(clip: Clip) -> Array:
    return clip.samples(NO_LIMIT)


def _read(how: Callable[[Clip], T], place: int, item: Any) -> T:
    """What is sent of an item; raises TaskProblem, naming it."""
    try:
        clip = clip_of(item)
    except ValueError as error:
        raise TaskProblem(f"the task reads audio, item {place}: {error}") from None
    try:
        return how(clip)
    except ValueError as error:
        raise TaskProblem(f"item {place} ({clip.name}): {error}") from None


AUDIO_BYTES, AUDIO = AudioBytesInput(), AudioInput()
