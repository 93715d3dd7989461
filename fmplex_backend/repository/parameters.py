"""What a backbone's config.pbtxt says of the model in it: the section `parameters`, where every value is a string."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fmplex_backend.confinement import MAX_VERSION_BYTES


class BackboneConfig(BaseModel):
    """What backbones of all families have; a family's own class adds to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    family: str = ""
    runtime: str = "torch"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    scheduler: Literal["bfq", "stfq", "fifo"] = "bfq"
    # the part of a full batch's throughput at which a batch ends; 1: at none
    batch_efficiency: float = Field(default=0.95, gt=0.5, le=1)
    vfm_slots: int = Field(default=256, ge=1, le=16384)
    group_members: int = Field(default=16, ge=0, le=256)  # the most tasks of a group
    max_queue: int = Field(default=1024, ge=1)
    max_queue_bytes: int = Field(default=256 << 20, ge=1)
    max_seconds: float = Field(default=0, ge=0, allow_inf_nan=False)  # from arrival to the last reply; 0: no limit
    cache_bytes: int = Field(default=64 << 20, ge=0)  # that kept answers of tasks with `cache` may take together
    max_version_bytes: int = Field(default=MAX_VERSION_BYTES, ge=1)  # all files of a task's version together
    max_batch_tokens: int = Field(default=0, ge=0)  # 0: chosen by the runtime for its device
    adapter_memory: int = Field(default=0, ge=0)  # bytes of LoRA adapters in memory; 0: as many as there are
    share_rows: bool = True  # whether rows of a batch that are equal run once
    elastic: bool = False  # a controller has written it, and removes it when it is not needed any more
    threads: int = Field(default=0, ge=0)  # intra-op threads; 0: the cores this process may use
