"""The heads of fine-tuned time-series models, as decoders. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmplex_backend.decoders import Embedder
from fmplex_backend.decoders.decoder import Pooling
from fmplex_backend.families.heads import CarriedOver, layers, made_for, scores_decoder
from fmplex_backend.families.time_series.own_head import OwnForecaster

if TYPE_CHECKING:
    from torch import Tensor


def carried_over(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CarriedOver:
    """As `Family.carried_over`."""
    kind, made = str(config.get("model_type")), made_for(config)
    if made in ("Model", "ForPretraining"):
        return CarriedOver(Embedder(), {})
    if made == "ForPrediction":
        return CarriedOver(OwnForecaster(head="task"), tensors)
    if kind == "patchtst" and made == "ForClassification" and config.get("num_input_channels", 1) == 1:
        head = layers(tensors, ["head.linear"], f"a {kind}{made}")
        return CarriedOver(scores_decoder(config, head, "tanh", _pooling(config)), head)
    raise ValueError(
        f"the head of a {kind} made {made} is none that a decoder here computes. Forecast heads are carried over, and "
        "of PatchTST those for classification of one channel"
    )


def _pooling(config: Mapping[str, Any]) -> Pooling:
    """Of a PatchTST; raises ValueError."""
    if config.get("use_cls_token"):
        return "cls"
    chosen = config.get("pooling_type", "mean")
    if chosen not in ("mean", "max"):
        raise ValueError(f"pooling_type is {chosen}. Decoders here read mean or max")
    return "max" if chosen == "max" else "mean"
