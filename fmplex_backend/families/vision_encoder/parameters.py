"""What a vision encoder's config.pbtxt says of the model in it."""

from __future__ import annotations

from pydantic import Field

from fmplex_backend.repository.parameters import BackboneConfig


class VisionEncoderConfig(BackboneConfig):
    """What all backbones have, and the largest picture.

    A picture takes about 8 bytes a pixel while it is decoded and resized; one above 4 megapixels waits for another
    such, so that no two of them take memory at a time.
    """

    max_pixels: int = Field(default=1 << 25, ge=1, le=1 << 30)
