"""What a language model's config.pbtxt says of the model in it."""

from __future__ import annotations

from pydantic import Field

from fmplex_backend.repository.parameters import BackboneConfig


class CausalLmConfig(BackboneConfig):
    """What all backbones have, and how sequences share a step and the memory for keys and values."""

    # A step decodes every sequence that it has room for: a row costs little beside the weights that are read once.
    batch_efficiency: float = Field(default=1.0, gt=0.5, le=1)
    max_sequences: int = Field(default=16, ge=1, le=4096)  # Bmax: sequences of a step
    max_length: int = Field(default=0, ge=0)  # tokens of prompt and answer together; 0: what the model can
    prefill_chunk: int = Field(default=0, ge=0)  # tokens of a prompt that one step takes; 0: chosen for the device
    prefix_cache: bool = True  # whether sequences of a task's version share the blocks of what they have in common
    # seconds of service by which a vFM may be ahead of its turn when a sequence begins for what it finds in memory
    locality_s: float = Field(default=0, ge=0, allow_inf_nan=False)
    kv_cache_bytes: int = Field(default=0, ge=0)  # 0: 1 GiB on a CPU, half of what is free on a GPU
