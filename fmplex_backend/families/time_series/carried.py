"""The heads of fine-tuned time-series models, as decoders. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fmplex_backend.decoders import Embedder
from fmplex_backend.decoders.decoder import Pooling
from fmplex_backend.families.heads import CarriedOver, layers, made_for, scores_decoder
from fmplex_backend.families.time_series import moment_heads
from fmplex_backend.families.time_series.architectures import architecture_of
from fmplex_backend.families.time_series.moment import is_moment
from fmplex_backend.families.time_series.own_head import OwnForecaster
from fmplex_backend.families.time_series.sections import Window

if TYPE_CHECKING:
    from torch import Tensor


def carried_over(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CarriedOver:
    """As `Family.carried_over`."""
    if is_moment(config):
        return moment_heads.carried_over(config, tensors)
    kind, made = str(config.get("model_type")), made_for(config)
    architecture = architecture_of(config)
    assert architecture is not None  # `takes_model`
    if made in ("Model", "ForPretraining"):
        return CarriedOver(Embedder(), {}, _window(config, architecture.separates))
    if made in ("ForPrediction", "ForForecasting"):
        own = OwnForecaster(head="task")
        return CarriedOver(own, architecture.head_of(tensors), _window(config, architecture.forecasts_any))
    if kind == "patchtst" and made == "ForClassification" and config.get("num_input_channels", 1) == 1:
        head = layers(tensors, ["head.linear"], f"a {kind}{made}")
        decoder = scores_decoder(config, head, "tanh", _pooling(config))
        return CarriedOver(decoder, head, _window(config, architecture.separates))
    raise ValueError(
        f"the head of a {kind} made {made} is none that a decoder here computes. Forecast heads are carried over, and "
        "of PatchTST those for classification of one channel"
    )


def _window(config: Mapping[str, Any], takes_any: Callable[[Any], bool]) -> Window | None:
    """An encoder for the channels that a model sees at once; None where it takes any number."""
    from transformers import AutoConfig

    whole = AutoConfig.for_model(**config)
    return None if takes_any(whole) else Window(channels=whole.num_input_channels)


def _pooling(config: Mapping[str, Any]) -> Pooling:
    """Of a PatchTST; raises ValueError."""
    if config.get("use_cls_token"):
        return "cls"
    chosen = config.get("pooling_type", "mean")
    if chosen not in ("mean", "max"):
        raise ValueError(f"pooling_type is {chosen}. Decoders here read mean or max")
    return "max" if chosen == "max" else "mean"
