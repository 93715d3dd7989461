"""The architectures of time-series models that can be backbones, by their model type. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PATCHES = "patches"  # in the place of a pooling: the decoder reads the vectors of all patches, and the scale


@dataclass(frozen=True, slots=True)
class Architecture:
    """What differs from one to the other.

    Args:
        mask: the name of the argument that says which values were observed.
        separates: whether a config has channels that do not see each other, so that any number may come.
        forecaster: the class with the model's own forecast head; `backbone` is its attribute for the rest.
        package: what has the class, where that is not transformers, whose AutoModel then does not know the model
            without its head; `install`: how to have it.
        unread: fields that a backbone's config must not have set, and why.
    """

    mask: str
    separates: Callable[[Any], bool]
    forecaster: str
    backbone: str = "model"
    package: str = ""
    install: str = ""
    unread: tuple[tuple[str, str], ...] = ()


ARCHITECTURES = {
    "patchtst": Architecture(
        "past_observed_mask",
        lambda config: bool(config.share_embedding and not config.channel_attention),
        "PatchTSTForPrediction",
    ),
    "patchtsmixer": Architecture(
        "observed_mask", lambda config: config.mode == "common_channel", "PatchTSMixerForPrediction"
    ),
    "tinytimemixer": Architecture(
        "past_observed_mask",
        lambda config: config.mode == "common_channel",
        "TinyTimeMixerForPrediction",
        "backbone",
        "tsfm_public.models.tinytimemixer",
        "pip install --no-deps granite-tsfm==0.3.11 && pip install 'fmplex[tiny-time-mixer]'",
        (
            ("resolution_prefix_tuning", "it wants the frequency of each series"),
            ("categorical_vocab_size_list", "it wants categories beside each series"),
            ("enable_forecast_channel_mixing", "it wants values of the future"),
        ),
    ),
}
