"""Tiny models with random weights, and heads and adapters for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from fmplex_backend.families.text_encoder.parameters import TextEncoderConfig
from fmplex_backend.families.text_encoder.runtime import TextEncoderRuntime
from fmplex_backend.scheduling import CostModel
from fmplex_backend.types import PassShape
from testing import adapters

torch.set_num_threads(1)  # these models are too small for more, and other processes need the cores

DEVICES = ("cpu", "cuda:0") if torch.cuda.is_available() else ("cpu",)
WORDS = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(60))]
_SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
_DISTIL: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
_MODERN: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
TINY: dict[str, Callable[[], Any]] = {
    "albert": lambda: AlbertModel(AlbertConfig(**_SIZES, embedding_size=16)),
    "bert": lambda: BertModel(BertConfig(**_SIZES)),
    "roberta": lambda: RobertaModel(RobertaConfig(**_SIZES)),
    "distilbert": lambda: DistilBertModel(DistilBertConfig(**_DISTIL)),
    "electra": lambda: ElectraModel(ElectraConfig(**_SIZES, embedding_size=16)),
    "mpnet": lambda: MPNetModel(MPNetConfig(**_SIZES)),
    "modernbert": lambda: ModernBertModel(ModernBertConfig(**_SIZES, **_MODERN)),
}


def tiny_tokenizer(max_length: int = 48) -> Any:
    """A tokenizer of the words w0 to w59, split at spaces."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    make: Any = PreTrainedTokenizerFast
    return make(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=max_length,
    )


def tiny_model(kind: str, seed: int = 0) -> Any:
    """A model with random weights, large enough for attention and adapters to change its outputs."""
    torch.manual_seed(seed)
    model = TINY[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.2)
    return model.eval().requires_grad_(False)


def save_tiny(directory: Path, kind: str = "bert", seed: int = 0) -> Path:
    """Save a tiny model and its tokenizer as the hub has them."""
    tiny_model(kind, seed).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


class Chosen:
    """The device of the test at hand."""

    device = "cpu"


def device_fixture() -> Any:
    """A fixture that repeats all tests of its file on each of DEVICES: `device = device_fixture()` there."""

    @pytest.fixture(scope="module", autouse=True, params=DEVICES)
    def device(request: pytest.FixtureRequest) -> Iterator[str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Chosen, "device", request.param)
            yield request.param

    return device


def close_enough() -> dict[str, float]:
    """`rtol` and `atol` of float32 on the device of the test: a GPU adds up in another order."""
    return {"rtol": 1e-4, "atol": 1e-5 if Chosen.device == "cpu" else 1e-4}


def text_runtime(
    directory: Path,
    *,
    predict: Callable[[PassShape], float] | None = None,
    max_items: int = 32,
    device: str = "",
    **config: Any,
) -> TextEncoderRuntime:
    """The real runtime over a tiny model, on `device` or that of the test at hand; in float32 by default."""
    settings = TextEncoderConfig(model=str(directory), threads=1, **({"dtype": "float32"} | config))
    predict = predict or CostModel().predict
    return TextEncoderRuntime(settings, directory / "config.pbtxt", device or Chosen.device, max_items, predict)


def write_head(file: Path, outputs: int, hidden: int = 32, *layers: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Write a head's weights; `layers` are the widths of hidden layers."""
    generator = torch.Generator().manual_seed(seed)
    widths = [hidden, *layers, outputs]
    tensors = {}
    for position, (before, after) in enumerate(pairwise(widths)):
        prefix = f"{position}." if layers else ""
        tensors[f"{prefix}weight"] = torch.randn(after, before, generator=generator)
        tensors[f"{prefix}bias"] = torch.randn(after, generator=generator)
    save_file(tensors, file)
    return tensors


def save_adapter(directory: Path, config: Any, kind: str = "bert", seed: int = 0) -> Path:
    """Save an adapter of a tiny model, with weights large enough to change its outputs."""
    return adapters.save_adapter(directory, tiny_model(kind), config, seed=seed, scale=0.2)
