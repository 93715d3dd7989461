"""What a time-series backbone's config.pbtxt says of the model in it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fmplex_backend.repository.parameters import BackboneConfig


class TimeSeriesConfig(BackboneConfig):
    """What all backbones have, and the most channels of a series.

    Weights are float32 on every device: in bfloat16 a series of numbers around 1,000 has steps of 4.
    """

    dtype: Literal["auto", "float32"] = "auto"
    max_channels: int = Field(default=1024, ge=1, le=1 << 20)
