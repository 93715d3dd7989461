"""The encoders of audio backbones: sections `encoder` of task.json, which the Task-API takes as they are."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fmplex_backend.families.audio_encoder.inputs import AUDIO, AUDIO_BYTES
from fmplex_backend.families.spec import Input
from fmplex_backend.section import CHECKED

if TYPE_CHECKING:
    from fmplex_backend.families.audio_encoder.preprocessing import AudioReader, Preprocessor
SILENCE = 1.0  # seconds


@dataclass(config=CHECKED, frozen=True)
class _Audio:
    silence: Annotated[float, Field(ge=0, le=30, allow_inf_nan=False)] = SILENCE

    learns: ClassVar[Literal["nothing", "optionally", "always"]] = "nothing"

    def load(self, directory: Path, preprocessor: Preprocessor) -> AudioReader:
        """As the runtime calls it."""
        from fmplex_backend.families.audio_encoder.preprocessing import AudioReader

        return AudioReader(self.reads().tensor.name, preprocessor, self.silence)

    def reads(self) -> Input:
        """The input."""
        raise NotImplementedError


@dataclass(config=CHECKED, frozen=True)
class AudioFile(_Audio):
    """Clips are sent as files: WAV, FLAC or OGG, of any rate and length.

    Args:
        silence: seconds of it that the backbone hears after a clip, or as much of it as fits into the model's window
            after the clip. Whisper was trained on windows filled up with silence: 30 is what it knows, 1 costs a short
            clip a tenth of that.
    """

    kind: Literal["audio-file"] = field(default="audio-file", kw_only=True, repr=False)

    def reads(self) -> Input:
        return AUDIO_BYTES

    def size(self) -> int | None:
        return 1


@dataclass(config=CHECKED, frozen=True)
class AudioSamples(_Audio):
    """Clips are sent as samples, float32 [n] within -1 and 1, 16,000 a second, those of one request of one length.

    Args:
        silence: seconds of it that the backbone hears after a clip, or as much of it as fits into the model's window
            after the clip. Whisper was trained on windows filled up with silence: 30 is what it knows, 1 costs a short
            clip a tenth of that.
    """

    kind: Literal["audio-samples"] = field(default="audio-samples", kw_only=True, repr=False)

    def reads(self) -> Input:
        return AUDIO

    def size(self) -> int | None:
        return None
