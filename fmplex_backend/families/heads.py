"""The heads that transformers' fine-tuned models put on an encoder, as decoders. Imports no torch.

A family knows where its heads lie (`Family.carried_over`); what they have in common is here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fmplex_backend.decoders import Classifier, Decoder, MultiLabel, Regressor
from fmplex_backend.decoders.decoder import Pooling
from fmplex_backend.decoders.head import Activation

if TYPE_CHECKING:
    from torch import Tensor

    from fmplex_backend.families.spec import Encoder

PARTS = ("weight", "bias")


@dataclass(frozen=True, slots=True)
class CarriedOver:
    """A fine-tuned model's head as a decoder.

    Args:
        tensors: of its decoder.safetensors; none where it has none.
        encoder: None: the family's default.
    """

    decoder: Decoder
    tensors: Mapping[str, Tensor]
    encoder: Encoder | None = None


def made_for(config: Mapping[str, Any]) -> str:
    """The class that a model was saved from, of its config.json, without what names the architecture's family."""
    classes = config.get("architectures") or [""]
    name = str(classes[0])
    return name[at:] if (at := name.find("For")) >= 0 else "Model"


def labels_of(config: Mapping[str, Any], count: int) -> list[str]:
    """The labels in the order of a head's outputs; raises ValueError where they cannot tell its outputs apart."""
    named: Mapping[Any, Any] = config.get("id2label") or {}
    by_number = {int(number): str(label) for number, label in named.items()}
    labels = [by_number.get(number, f"LABEL_{number}") for number in range(count)]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"id2label gives {', '.join(twice)} to several outputs. Correct its config.json")
    return labels


def layers(tensors: Mapping[str, Tensor], names: Sequence[str], of: str) -> dict[str, Tensor]:
    """The Linear layers of a head by the names of decoder.safetensors; raises ValueError where some are missing.

    Args:
        names: of the layers, in order.
        of: what is said to have them.
    """
    wanted = {
        f"{name}.{part}": f"{number}.{part}" if len(names) > 1 else part
        for number, name in enumerate(names)
        for part in PARTS
    }
    if missing := sorted(set(wanted) - set(tensors)):
        have = ", ".join(sorted(tensors)) or "nothing"
        raise ValueError(f"the head of {of} has {', '.join(sorted(wanted))}; there is {have}, not {', '.join(missing)}")
    return {to: tensors[name].detach().float().cpu().clone().contiguous() for name, to in wanted.items()}


def scores_decoder(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], activation: Activation, pooling: Pooling
) -> Decoder:
    """The decoder of a head on a pooled vector, by the model's `problem_type`, or as transformers tells it by default.

    Args:
        tensors: as `layers` makes them.
    """
    biases = [each for name, each in sorted(tensors.items()) if name.endswith("bias")]
    weights = [each for name, each in sorted(tensors.items()) if name.endswith("weight")]
    count, hidden = len(biases[-1]), tuple(len(each) for each in weights[:-1])
    problem = config.get("problem_type") or ("regression" if count == 1 else "single_label_classification")
    if problem == "regression":
        return Regressor(count, hidden=hidden, activation=activation, pooling=pooling)
    labels = labels_of(config, count)
    if problem == "multi_label_classification":
        return MultiLabel(labels, hidden=hidden, activation=activation, pooling=pooling)
    return Classifier(labels, hidden=hidden, activation=activation, pooling=pooling)
