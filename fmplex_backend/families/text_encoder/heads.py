"""The heads of transformers' fine-tuned text encoders. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmplex_backend.decoders import Embedder, TokenClassifier
from fmplex_backend.decoders.head import Activation
from fmplex_backend.families.heads import CarriedOver, labels_of, layers, made_for, scores_decoder

if TYPE_CHECKING:
    from torch import Tensor

# The layers that ...ForSequenceClassification puts on the first token's vector, by model type, and the activation
# between them. BERT's and ALBERT's pooler is a part of the backbone there.
SEQUENCE_HEADS: dict[str, tuple[tuple[str, str], Activation]] = {
    "albert": (("pooler", "classifier"), "tanh"),
    "bert": (("pooler.dense", "classifier"), "tanh"),
    "camembert": (("classifier.dense", "classifier.out_proj"), "tanh"),
    "deberta": (("pooler.dense", "classifier"), "gelu"),
    "deberta-v2": (("pooler.dense", "classifier"), "gelu"),
    "distilbert": (("pre_classifier", "classifier"), "relu"),
    "electra": (("classifier.dense", "classifier.out_proj"), "gelu"),
    "mpnet": (("classifier.dense", "classifier.out_proj"), "tanh"),
    "roberta": (("classifier.dense", "classifier.out_proj"), "tanh"),
    "xlm-roberta": (("classifier.dense", "classifier.out_proj"), "tanh"),
}
DEBERTA = ("deberta", "deberta-v2")  # their pooler's activation is a setting
TOKEN_HEADS = frozenset(SEQUENCE_HEADS)  # all of them have one layer, `classifier`, for ...ForTokenClassification


def carried_over(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CarriedOver:
    """As `Family.carried_over`."""
    kind, made = str(config.get("model_type")), made_for(config)
    if made in ("Model", "ForMaskedLM", "ForPreTraining"):
        return CarriedOver(Embedder(), {})
    if made == "ForSequenceClassification" and kind in SEQUENCE_HEADS:
        names, activation = SEQUENCE_HEADS[kind]
        if kind in DEBERTA and (own := config.get("pooler_hidden_act", activation)) != activation:
            raise ValueError(f"the pooler_hidden_act of a {kind} is {own}: only {activation} is carried over")
        head = layers(tensors, names, f"a {kind}{made}")
        return CarriedOver(scores_decoder(config, head, activation, "cls"), head)
    if made == "ForTokenClassification" and kind in TOKEN_HEADS:
        head = layers(tensors, ["classifier"], f"a {kind}{made}")
        return CarriedOver(TokenClassifier(labels_of(config, len(head["bias"]))), head)
    raise ValueError(
        f"the head of a {kind} made {made} is none that a decoder here computes. Heads for sequence and token "
        f"classification are carried over, of {', '.join(sorted(SEQUENCE_HEADS))}"
    )
