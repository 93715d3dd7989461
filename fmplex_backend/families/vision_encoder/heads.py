"""The heads of transformers' fine-tuned vision encoders. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmplex_backend.decoders import Embedder
from fmplex_backend.decoders.decoder import Pooling
from fmplex_backend.families.heads import CarriedOver, layers, made_for, scores_decoder

if TYPE_CHECKING:
    from torch import Tensor

# What ...ForImageClassification puts its layer `classifier` on, by model type.
IMAGE_HEADS: dict[str, Pooling] = {
    "clip": "mean",
    "convnext": "cls",
    "convnextv2": "cls",
    "deit": "cls",
    "swin": "cls",
    "swinv2": "cls",
    "vit": "cls",
}


def carried_over(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CarriedOver:
    """As `Family.carried_over`."""
    kind, made = str(config.get("model_type")), made_for(config)
    if made == "Model":
        return CarriedOver(Embedder("cls"), {})
    if made == "ForImageClassification" and kind in IMAGE_HEADS:
        head = layers(tensors, ["classifier"], f"a {kind}{made}")
        return CarriedOver(scores_decoder(config, head, "tanh", IMAGE_HEADS[kind]), head)
    raise ValueError(
        f"the head of a {kind} made {made} is none that a decoder here computes. Heads for image classification are "
        f"carried over, of {', '.join(sorted(IMAGE_HEADS))}"
    )
