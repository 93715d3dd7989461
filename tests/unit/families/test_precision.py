"""Which dtype a backbone's weights are loaded in."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from fmplex_backend.families import precision
from fmplex_backend.families.precision import chosen_dtype, dtype_name, has_bfloat16

CPU, GPU = torch.device("cpu"), torch.device("cuda:1")


def cpu_with(monkeypatch: pytest.MonkeyPatch, *capabilities: str) -> None:
    """Have torch tell of a CPU with these capabilities, and of AVX-512."""
    told: dict[str, Any] = {"architecture": "x86_64", "avx512_f": True} | dict.fromkeys(capabilities, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)


def gpu_with(monkeypatch: pytest.MonkeyPatch, *, bfloat16: bool) -> list[bool]:
    """Have torch tell of a GPU; returns what it was asked: whether emulation counts."""
    asked: list[bool] = []

    def is_supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return bfloat16

    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    return asked


@pytest.mark.parametrize(
    ("capabilities", "want"),
    [
        (("avx512_bf16",), torch.bfloat16),
        (("amx_tile", "amx_bf16"), torch.bfloat16),
        ((), torch.float32),
        (("amx_tile",), torch.float32),
    ],
)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, None])
def test_auto_on_a_cpu_is_what_it_multiplies_in_hardware(
    monkeypatch: pytest.MonkeyPatch, capabilities: tuple[str, ...], want: torch.dtype, stored: torch.dtype | None
) -> None:
    cpu_with(monkeypatch, *capabilities)
    assert chosen_dtype("auto", CPU, stored) == want


@pytest.mark.parametrize(("avx512", "amx", "want"), [(True, False, True), (False, True, True), (False, False, False)])
def test_a_torch_without_the_public_name(monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool, want: bool) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_bfloat16(CPU) == want


def test_a_torch_that_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("get_capabilities", "_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not has_bfloat16(CPU)


def test_a_torch_without_onednn_has_no_fast_products(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch, "avx512_bf16")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not has_bfloat16(CPU)


@pytest.mark.parametrize(("bfloat16", "want"), [(True, torch.bfloat16), (False, torch.float32)])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, None])
def test_auto_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, bfloat16: bool, want: torch.dtype, stored: torch.dtype | None
) -> None:
    asked = gpu_with(monkeypatch, bfloat16=bfloat16)
    assert chosen_dtype("auto", GPU, stored) == want
    assert asked == [False]


@pytest.mark.parametrize("bfloat16", [True, False])
def test_weights_in_float16_stay_so_on_a_gpu(monkeypatch: pytest.MonkeyPatch, bfloat16: bool) -> None:
    gpu_with(monkeypatch, bfloat16=bfloat16)
    assert chosen_dtype("auto", GPU, torch.float16) == torch.float16


@pytest.mark.parametrize("wanted", list(precision.DTYPES))
def test_what_is_said_is_taken_on_every_device(wanted: str) -> None:
    for device in (CPU, GPU):
        assert dtype_name(chosen_dtype(wanted, device, torch.float16)) == wanted


def test_other_devices() -> None:
    assert chosen_dtype("auto", torch.device("mps"), torch.float16) == torch.float32
