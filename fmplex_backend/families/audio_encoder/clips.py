"""Clips as people have them (files, bytes, arrays with their rate), and as samples: mono, 16,000 a second, float32.

soundfile and soxr are imported when they are needed: clients that send files do without.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fmplex_backend.families.given import Given

Array = npt.NDArray[np.float32]
RATE = 16_000  # samples a second: of AUDIO, and of what speech models read
RATES = (2_000, 384_000)  # of files, the least and the most
FORMATS = ("FLAC", "OGG", "WAV", "WAVEX")
SUFFIXES = (".wav", ".flac", ".ogg")
MOST_CHANNELS = 16
LOUDEST = 16.0  # of samples that lie within -1 and 1, but for what resampling and mixing add; integers are beyond
BLOCK = 1 << 18  # frames that are decoded at a time
NO_LIMIT = 1e9  # seconds; clients may send what they have
BY_HEADER = " by its header"  # where a message says what a file has
UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's, of a FLAC that was written to a stream
FIRST_PAGE = re.compile(rb"OggS\x00[\x02\x03\x06\x07]")  # each stream of an OGG file has one
CELL = {"array", "bytes", "path", "sampling_rate"}  # of Hugging Face's audio data sets


class Clip(Given):
    """A clip. See `Given`; `content` raises as `samples` does.

    Args:
        source: a WAV, FLAC or OGG file, the bytes of one, or samples [n] of float32.
        rate: of samples, a second.
    """

    noun = "clip"

    def __init__(self, source: Path | bytes | Array, rate: int = RATE) -> None:
        """Raises ValueError for a rate that no server takes."""
        _check_rate(rate)
        super().__init__(source)
        self.rate = rate

    def _hashed(self, values: Array) -> bytes:
        return f"{self.rate} ".encode() + values.tobytes()

    def _measure(self, values: Array) -> str:
        return f"{len(values) / self.rate:.2f} s"

    def _encoded(self, values: Array) -> bytes:
        check_samples(values)
        import soundfile

        stream = BytesIO()
        soundfile.write(stream, values, self.rate, format="WAV", subtype="FLOAT")
        return stream.getvalue()

    def samples(self, most: float) -> Array:
        """At RATE; raises ValueError where there are none, or above `most` seconds, TaskProblem without such a file."""
        if not isinstance(self.source, np.ndarray):
            return decoded(self.content(), most)
        check_samples(self.source)
        check_seconds(len(self.source) / self.rate, most)
        return _resampled([self.source], self.rate)


def clip_of(given: Any) -> Clip:
    """Of a path, bytes, samples at RATE, (samples, rate), or a cell of Hugging Face's data sets; raises ValueError."""
    if isinstance(given, Clip):
        return given
    if isinstance(given, (bytes, bytearray)):
        return Clip(bytes(given))
    if isinstance(given, (str, Path)):
        if not Path(given).is_file():
            raise ValueError(f"there is no file {given}. Correct the path")
        return Clip(Path(given))
    if isinstance(given, Mapping):
        return _of_cell(given)
    if is_decoder(given):
        return _of_decoder(given)
    if is_pair(given):
        return Clip(_from_array(given[0]), _rate_of(given[1]))
    return Clip(_from_array(given))


def is_pair(given: Any) -> bool:
    """Whether it is samples and a rate, be it a good one."""
    if not isinstance(given, tuple) or len(given) != 2:
        return False
    return np.ndim(given[0]) > 0 and (given[1] is None or isinstance(given[1], (int, float, np.number)))


def is_decoder(given: Any) -> bool:
    """Whether it is the cell of an audio column as `datasets` 4 has it: an AudioDecoder of torchcodec's."""
    return hasattr(given, "get_all_samples")


def is_cell(given: Any) -> bool:
    """Whether it is a cell, and no table whose columns have such names."""
    if not isinstance(given, Mapping) or not given or not given.keys() <= CELL:
        return False
    return "sampling_rate" in given or not any(isinstance(each, (list, tuple)) for each in given.values())


def _of_cell(cell: Mapping[str, Any]) -> Clip:
    """Of {"array", "sampling_rate"} as `datasets` before 4 has it, or of {"bytes", "path"} where nothing is decoded."""
    if cell.get("array") is not None:
        return Clip(_from_array(cell["array"]), _rate_of(cell.get("sampling_rate")))
    file = cell.get("bytes") if cell.get("bytes") is not None else cell.get("path")
    if not isinstance(file, (bytes, bytearray, str, Path)):
        raise ValueError(f"{repr(cell)[:80]} is no clip. It wants array and sampling_rate, or bytes, or a path")
    return clip_of(file)


def _of_decoder(decoder: Any) -> Clip:
    """The mean of its channels [c, n]."""
    try:
        every = decoder.get_all_samples()
    except RuntimeError as error:  # torchcodec's
        raise ValueError(f"it cannot be decoded: {str(error).splitlines()[0]}") from None
    return Clip(_from_array(np.atleast_2d(np.asarray(every.data)).mean(axis=0)), _rate_of(every.sample_rate))


def _rate_of(given: Any) -> int:
    number = isinstance(given, (int, float, np.number)) and not isinstance(given, bool)
    if not number or not float(given).is_integer():
        raise ValueError(f"its rate is {given!r}; give the samples a second as a whole number")
    return int(given)


def _from_array(given: Any) -> Array:
    """Integers as the part of their range that they are."""
    values = np.asarray(given)
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        kind = f"an array of {values.dtype} {list(values.shape)}" if values.ndim else repr(given)[:80]
        raise ValueError(
            f"{kind} is no clip. Give a path, bytes, samples of one channel at {RATE} a second, or (samples, rate)"
        )
    if values.dtype.kind in "iu":
        info = np.iinfo(values.dtype)
        middle = 0 if values.dtype.kind == "i" else (info.max + 1) // 2
        values = (values.astype(np.float64) - middle) / ((info.max + 1) - middle)
    return np.ascontiguousarray(values, dtype=np.float32)


def check_samples(samples: Array) -> None:
    """Raise ValueError where there are none, or no model could make something of them."""
    if not len(samples):
        raise ValueError("it is empty; send at least one sample")
    loudest = float(np.abs(samples).max())  # NaN where one is
    if not math.isfinite(loudest):
        raise ValueError("it has samples that are not finite; send numbers between -1 and 1")
    if loudest > LOUDEST:
        raise ValueError(
            f"it has samples up to {loudest:g}; send numbers between -1 and 1, 16-bit ones divided by 32768"
        )


def check_seconds(seconds: float, most: float, by: str = "") -> None:
    """Raise ValueError for more audio than may be."""
    if seconds > most:
        raise ValueError(
            f"it has {seconds:,.1f} s{by}, and {most:,.1f} s are left of what a request may bring; send less at a "
            "time, or raise the backbone's parameter max_audio_seconds"
        )


def decoded(data: bytes, most: float) -> Array:
    """A file's samples at RATE, the mean of its channels; raises ValueError.

    What its header says is checked before anything is decoded, and it is decoded in blocks, since a header may lie and
    a small file may hold hours.
    """
    import soundfile

    try:
        with soundfile.SoundFile(BytesIO(data)) as file:
            if file.format not in FORMATS:
                raise ValueError(f"it is a file of {file.format}; send WAV, FLAC or OGG")
            if file.format == "OGG" and (streams := len(FIRST_PAGE.findall(data))) > 1:
                raise ValueError(
                    f"it has {streams} streams, of which the first alone would be read; send each as a file"
                )
            _check_rate(file.samplerate, BY_HEADER)
            if file.channels > MOST_CHANNELS:
                raise ValueError(f"it has {file.channels} channels, {MOST_CHANNELS} are allowed; send one")
            if file.frames == UNKNOWN_FRAMES:
                raise ValueError("its header does not say how long it is; write it to a file, not to a stream")
            check_seconds(max(file.frames, 0) / file.samplerate, most, BY_HEADER)
            found = _resampled(_blocks(file, most), file.samplerate)
    except soundfile.LibsndfileError as error:
        problem = error.error_string.rstrip(".")
        raise ValueError(f"it is no WAV, FLAC or OGG file, or a damaged one ({problem})") from None
    check_samples(found)
    return found


def _blocks(file: Any, most: float) -> Any:
    """The mean of the channels, block by block; raises ValueError for a file that ends before its header says so."""
    seen = 0
    while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
        seen += len(block)
        check_seconds(seen / file.samplerate, most)
        yield block.mean(axis=1) if block.shape[1] > 1 else block[:, 0]
    if seen < file.frames:
        raise ValueError(f"it is cut off: {seen:,} of {file.frames:,} frames could be read")


def _check_rate(rate: int, by: str = "") -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"it has {rate:,} samples a second{by}; send between {RATES[0]:,} and {RATES[1]:,}")


def _resampled(blocks: Any, rate: int) -> Array:
    """Blocks of mono samples -> all of them at RATE."""
    if rate == RATE:
        parts = list(blocks)
    else:
        import soxr

        stream = soxr.ResampleStream(rate, RATE, 1, dtype="float32")
        parts = [stream.resample_chunk(np.ascontiguousarray(block)) for block in blocks]
        parts.append(stream.resample_chunk(np.empty(0, dtype=np.float32), last=True))
    found: Array = np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)
    return found
