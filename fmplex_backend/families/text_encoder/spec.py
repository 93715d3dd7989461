"""The spec of text encoders. Imports neither torch nor Triton."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmplex_backend.adapters.kinds import PeftAdapter
from fmplex_backend.decoders import KINDS
from fmplex_backend.families.heads import CarriedOver
from fmplex_backend.families.model_files import find_model, fingerprint_of, hidden_width, width_in
from fmplex_backend.families.spec import Family, FittingInputs, Parts
from fmplex_backend.families.text_encoder.heads import carried_over
from fmplex_backend.families.text_encoder.inputs import FEATURES, TEXT
from fmplex_backend.families.text_encoder.parameters import TextEncoderConfig
from fmplex_backend.families.text_encoder.samples import texts_of_about
from fmplex_backend.families.text_encoder.sections import PluginEncoder, Projection, Text
from fmplex_backend.interface import TRUNCATED
from fmplex_backend.repository.parameters import BackboneConfig
from fmplex_backend.types import Predict, Runtime

if TYPE_CHECKING:
    from torch import Tensor


class TextEncoders(Family):
    """BERT, RoBERTa, MPNet, DistilBERT, ModernBERT and their like, through transformers' AutoModel."""

    name = "text-encoder"
    inputs = (TEXT, FEATURES)
    common_outputs = (TRUNCATED,)
    encoders = (Text, Projection, PluginEncoder)
    adapters = (PeftAdapter,)
    decoders = tuple(KINDS.values())
    parameters = TextEncoderConfig

    def check(self, parts: Parts) -> None:
        if parts.decoder.kind != "token-classification":
            return
        if not isinstance(parts.encoder, Text):
            raise ValueError("encoder.kind: a token-classification task reads text, and needs the kind text")
        if parts.encoder.windows > 1:
            raise ValueError("encoder.windows: a token-classification task reads one window; leave it at 1")

    def encoder_for(self, columns: Sequence[str], options: Mapping[str, Any]) -> Text | Projection:
        """A projection of columns of numbers, else texts with a prefix and a cut-off."""
        return Projection(len(columns)) if columns else Text(**options)

    def make_runtime(
        self, config: BackboneConfig, file: Path, device: str, max_items: int, predict: Predict
    ) -> Runtime:
        from fmplex_backend.families.text_encoder.runtime import TextEncoderRuntime

        assert isinstance(config, TextEncoderConfig)
        return TextEncoderRuntime(config, file, device, max_items, predict)

    def takes_model(self, config: Mapping[str, Any]) -> bool:
        """Encoders over a vocabulary alone: no decoder, and no part that reads anything but text."""
        made_for = " ".join(map(str, config.get("architectures") or ()))
        return (
            width_in(config) is not None
            and "vocab_size" in config
            and "image_size" not in config
            and not any(config.get(key) for key in ("is_decoder", "is_encoder_decoder"))
            and not any(key.endswith("_config") and isinstance(part, dict) for key, part in config.items())
            and not any(kind in made_for for kind in ("CausalLM", "LMHead", "ConditionalGeneration", "CTC"))
        )

    def hidden_width(self, config: BackboneConfig, file: Path) -> int | None:
        return hidden_width(find_model(config.model, file, fetch=False))

    def fingerprint(self, config: BackboneConfig, file: Path) -> str | None:
        return fingerprint_of(config.model, file)

    def samples(self, tensor: str, length: int, count: int, seed: int) -> list[Any]:
        return texts_of_about(length, count, seed) if tensor == TEXT.tensor.name else []

    def carried_over(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CarriedOver:
        return carried_over(config, tensors)

    def fitting_inputs(self, encoder: Any, runtime: Any, tensors: Mapping[str, Tensor], seed: int) -> FittingInputs:
        from fmplex_backend.families.text_encoder.fitting import TextFittingInputs

        return TextFittingInputs(encoder, runtime, tensors, seed)
