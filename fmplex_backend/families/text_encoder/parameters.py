"""What a text encoder's config.pbtxt says of the model in it."""

from __future__ import annotations

from pydantic import Field

from fmplex_backend.repository.parameters import BackboneConfig


class TextEncoderConfig(BackboneConfig):
    """What all backbones have, and the longest text."""

    max_length: int = Field(default=0, ge=0)  # tokens; 0: what the tokenizer says
