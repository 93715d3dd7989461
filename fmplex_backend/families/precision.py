"""The dtype of a backbone's weights, where its config leaves the choice to the device."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AVX512, AMX = "avx512_bf16", "amx_bf16"
_OLDER_NAMES = {AVX512: "avx512_bf16", AMX: "amx_tile"}


def chosen_dtype(wanted: str, device: torch.device, stored: torch.dtype | None) -> torch.dtype:
    """What weights are loaded in: as `wanted` says, or with "auto" the fastest that costs no accuracy to speak of.

    On GPUs, weights stored in float16 stay so: every GPU has it in hardware, and bfloat16 would round them.
    """
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cuda" and stored == torch.float16:
        return torch.float16
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware, as torch tells it."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and _cpu_multiplies_bfloat16()


def _cpu_multiplies_bfloat16() -> bool:
    """AVX512-BF16 or AMX. (`torch.ops.mkldnn._is_mkldnn_bf16_supported` says yes to all of AVX-512: slow emulation.)"""
    return cpu_has(AVX512) or cpu_has(AMX)


def cpu_has(extension: str) -> bool:
    """Whether the CPU has AVX512 or AMX for bfloat16, as torch tells it; one that cannot tell is taken for no."""
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get(extension, False))
    # An older torch has no public name for it.
    question = getattr(torch.cpu, f"_is_{_OLDER_NAMES[extension]}_supported", None)
    return question is not None and bool(question())


def dtype_name(dtype: torch.dtype) -> str:
    """As a config says it."""
    return str(dtype).removeprefix("torch.")
