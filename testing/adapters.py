"""PEFT adapters with random weights."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model


def lora(rank: int = 8, *targets: str, **options: Any) -> LoraConfig:
    """A LoRA on `targets`, query and value by default; alpha is twice the rank."""
    modules = list(targets or ("query", "value"))
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules, **options)


def save_adapter(directory: Path, model: Any, config: Any, *, seed: int = 0, scale: float = 0.02) -> Path:
    """Write what PEFT's save_pretrained writes.

    Args:
        model: the backbone. On the meta device where only names and shapes matter (not for DoRA, which starts from
            the backbone's weights). PEFT changes it.
        config: a PeftConfig.
        seed: the same seed gives the same weights.
        scale: standard deviation of LoRA's weights. IA3's factors are standard normal; DoRA's magnitudes are those of
            the backbone's weights times 1 to 2.
    """
    adapted = get_peft_model(model, deepcopy(config))  # PEFT writes the model's name into it
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: tensor.detach() for name, tensor in adapted.state_dict().items()}
    for name, tensor in adapted.named_parameters():
        if "magnitude" in name:
            tensors[name] = tensor.detach() * (1 + torch.rand(tensor.shape, generator=generator))
        elif "lora_" in name:
            tensors[name] = torch.randn(tensor.shape, generator=generator) * scale
        elif "ia3_" in name:
            tensors[name] = torch.randn(tensor.shape, generator=generator)
    adapted.save_pretrained(str(directory), state_dict=tensors, save_embedding_layers=False)
    return directory
