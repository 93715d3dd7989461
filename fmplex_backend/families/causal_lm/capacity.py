"""How much a language model's backbone takes: bytes of keys and values, and tokens of a prompt with its answer."""

from __future__ import annotations

from pathlib import Path

import torch

from fmplex_backend.errors import BackboneRefused
from fmplex_backend.families.causal_lm.huggingface import BLOCK, LoadedModel
from fmplex_backend.families.causal_lm.parameters import CausalLmConfig

GIB = 1 << 30
LEAST = 4 * BLOCK  # tokens of prompt and answer that a backbone takes at least


def cache_bytes(config: CausalLmConfig, device: torch.device) -> int:
    """Of keys and values: what the config says, else half of a GPU's memory that is free now, or a GiB of a CPU's."""
    if config.kv_cache_bytes:
        return config.kv_cache_bytes
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else GIB


def longest(config: CausalLmConfig, file: Path, loaded: LoadedModel, room: int) -> int:
    """Tokens that a prompt and its answer may have; raises BackboneRefused.

    Args:
        file: the backbone's config.pbtxt, for messages.
        room: tokens whose keys and values fit into memory.
    """
    if config.max_length > loaded.max_positions:
        problem = f"{config.max_length} is more than the model's {loaded.max_positions}"
        raise BackboneRefused(file, "parameters.max_length", problem, "Lower it")
    tokens = min(config.max_length or loaded.max_positions, room)
    if tokens < LEAST:
        raise _too_short(config, file, room, loaded.token_bytes)
    return tokens


def _too_short(config: CausalLmConfig, file: Path, room: int, token_bytes: int) -> BackboneRefused:
    """What is wrong where prompt and answer may be so short that no request is worth asking: memory, or a parameter."""
    if room < LEAST:
        problem = f"there is room for {room} tokens, {token_bytes} bytes each"
        return BackboneRefused(file, "parameters.kv_cache_bytes", problem, f"Say {LEAST * token_bytes} or more")
    if config.max_length:
        return BackboneRefused(
            file, "parameters.max_length", f"it is {config.max_length}", f"Say {LEAST} or more, or 0"
        )
    problem = f"{config.model!r} takes fewer than {LEAST} tokens"
    return BackboneRefused(file, "parameters.model", problem, "Choose another model")
