"""MOMENT as its package loads and runs it. Imported only where a backbone is one."""

from __future__ import annotations

import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from momentfm import MOMENTPipeline
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from fmplex_backend.families.time_series.moment import MODEL_TYPE

UNUSED = "encoder.embed_tokens"  # the words of the T5: 43% of MOMENT-1-small, in whose place patches come


class MomentConfig(PretrainedConfig):
    """The fields of a MOMENT's config.json, which has no type that transformers knows."""

    model_type = MODEL_TYPE


class Moment(PreTrainedModel):
    """A `MOMENTPipeline` without its head, as a model of transformers: PEFT and the runtimes take such."""

    config_class = MomentConfig
    _input_embed_layer = "patch_embedding"  # PEFT asks for it

    def __init__(self, config: Any, pipeline: Any) -> None:
        super().__init__(config)
        config.d_model = pipeline.config.d_model
        self.patch_len: int = pipeline.patch_len
        self.normalizer, self.tokenizer = pipeline.normalizer, pipeline.tokenizer
        self.patch_embedding, self.encoder = pipeline.patch_embedding, pipeline.encoder
        self.set_submodule(UNUSED, nn.Identity())

    def embed(self, values: Tensor, observed: Tensor) -> Tensor:
        """The package's own: [n, c, context] and [n, context] -> states [n, c, patches, d]."""
        found: Tensor = MOMENTPipeline.embed(self, x_enc=values, input_mask=observed, reduction="none").embeddings
        return found


class Loader:
    """Stands where `load_model` takes a class of transformers."""

    @staticmethod
    def from_pretrained(
        directory: Path, *, config: Any, dtype: torch.dtype, output_loading_info: bool
    ) -> tuple[Any, dict[str, list[str]]]:
        """The model, and which of its weights the directory lacks: the package starts these at random.

        No head is made: that of a fine-tuning does not fit into the one which its own config.json asks for.
        """
        fields = config.to_dict() | {"task_name": "embedding", "enable_gradient_checkpointing": False}
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):  # it prints, where programs read JSON
            warnings.filterwarnings("ignore", "Only reconstruction head is pre-trained")  # none is asked for
            pipeline = MOMENTPipeline.from_pretrained(directory, config=fields, model_kwargs={})
        model: Any = Moment(config, pipeline)
        with safe_open(directory / "model.safetensors", "pt") as file:
            missing = sorted(model.state_dict().keys() - set(file.keys()))
        return model.to(dtype), {"missing_keys": missing}
