"""What an audio encoder's config.pbtxt says of the model in it."""

from __future__ import annotations

from pydantic import Field

from fmplex_backend.repository.parameters import BackboneConfig


class AudioEncoderConfig(BackboneConfig):
    """What all backbones have, and how much audio a request may bring.

    A second takes 128 KB while it is read and turned into features, and until it has run 32 KB where the model has 80
    mel bins, 51 KB where it has 128.
    """

    max_audio_seconds: float = Field(
        default=600, gt=0, le=86400, allow_inf_nan=False
    )  # all clips of a request together
