"""The heads of MOMENT's checkpoints, as decoders. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmplex_backend.decoders import Embedder
from fmplex_backend.families.heads import CarriedOver, layers
from fmplex_backend.families.time_series.forecasting import Forecaster
from fmplex_backend.families.time_series.imputation import Imputer
from fmplex_backend.families.time_series.moment import width
from fmplex_backend.families.time_series.patching import Patching

if TYPE_CHECKING:
    from torch import Tensor


def carried_over(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CarriedOver:
    """A checkpoint's head as a decoder that computes the same; raises ValueError for one that none does.

    Its shape tells which it is: what the package saves of a fine-tuning names the task of the pretraining. A
    classification head is told from that for reconstruction unless it has as many classes as a patch has steps.
    """
    weight = tensors.get("head.linear.weight")
    if weight is None:
        return CarriedOver(Embedder(), {})
    patch, hidden = int(config["patch_len"]), width(config) or 0
    patches, shape = int(config["seq_len"]) // patch, tuple(weight.shape)
    head = layers(tensors, ["head.linear"], "a MOMENT")
    if config.get("task_name") != "classification":
        if shape[1] == patches * hidden:
            return CarriedOver(Forecaster(shape[0]), head)
        if shape == (patch, hidden):
            return CarriedOver(Imputer(patching=Patching(patch, patch, 0, patches)), head)
    raise ValueError(
        f"head.linear.weight is {list(shape)}: for forecasts it has {patches * hidden} inputs, for reconstruction "
        f"it is {[patch, hidden]}. A classification head reads the mean over all patches, those of padding too, which "
        "no decoder here computes: fit a Classifier"
    )
