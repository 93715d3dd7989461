"""Tiny models with random weights, made offline in the time of a test, and heads for them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
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

from fmplex_backend.config import BackboneConfig
from fmplex_backend.runtime.text_encoder import TextEncoderRuntime
from fmplex_backend.scheduling import CostModel
from fmplex_backend.types import PassShape

torch.set_num_threads(1)  # these models are too small to share out, and the cores are others' too

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
    """Words w0 to w59, split at spaces."""
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
    """Random weights, large enough that attention and adapters are seen in what comes out."""
    torch.manual_seed(seed)
    model = TINY[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.2)
    return model.eval().requires_grad_(False)


def save_tiny(directory: Path, kind: str = "bert", seed: int = 0) -> Path:
    """A model's directory as the hub has it."""
    tiny_model(kind, seed).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def text_runtime(
    directory: Path, *, predict: Callable[[PassShape], float] | None = None, max_items: int = 32, **config: Any
) -> TextEncoderRuntime:
    """The real runtime over a tiny model."""
    settings = BackboneConfig(model=str(directory), threads=1, **config)
    predict = predict or CostModel().predict
    return TextEncoderRuntime(settings, directory / "config.pbtxt", torch.device("cpu"), max_items, predict)


def write_head(file: Path, outputs: int, hidden: int = 32, *layers: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A head's weights: `layers` are the widths between hidden and outputs."""
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
    """What PEFT saves, with random weights where it starts from zeros or ones."""
    model = get_peft_model(tiny_model(kind), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + torch.rand(parameter.shape, generator=generator))
            elif "lora_" in name or "ia3_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(str(directory))
    return directory
