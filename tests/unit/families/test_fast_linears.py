"""Linears are replaced where that gains, by what gains the most there."""

from __future__ import annotations

import logging
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fmplex_backend.families import mkl
from fmplex_backend.families.fast_linears import INTEL, speed_up
from fmplex_backend.families.mkl import MklLinear
from fmplex_backend.families.onednn import OneDnnLinear, PackedOneDnnLinear

AMD = "AuthenticAMD"
needs_mkl = pytest.mark.skipif(not mkl.is_there(), reason="a torch without MKL")


def tied(dtype: torch.dtype) -> nn.Sequential:
    """As a language model, whose head has the weights of its embeddings."""
    model = nn.Sequential(nn.Embedding(40, 24), nn.Linear(24, 24), nn.Linear(24, 40, bias=False)).to(dtype)
    model[2].weight = model[0].weight
    return model.requires_grad_(False).eval()


def kinds(model: nn.Sequential) -> list[type[nn.Module]]:
    return [type(each) for each in model]


@pytest.mark.parametrize(
    ("dtype", "vendor", "has_amx", "few_rows", "replaced"),
    [
        (torch.float32, AMD, False, True, [OneDnnLinear, OneDnnLinear]),
        (torch.float32, AMD, True, False, [nn.Linear, nn.Linear]),
        pytest.param(torch.float32, INTEL, True, True, [MklLinear, OneDnnLinear], marks=needs_mkl),
        pytest.param(torch.float32, INTEL, False, False, [MklLinear, nn.Linear], marks=needs_mkl),
        (torch.float32, "", True, True, [nn.Linear, nn.Linear]),
        (torch.bfloat16, INTEL, True, True, [PackedOneDnnLinear, nn.Linear]),
        (torch.bfloat16, AMD, False, True, [nn.Linear, nn.Linear]),
        (torch.float64, INTEL, True, True, [nn.Linear, nn.Linear]),
    ],
    ids=lambda value: str(value).replace("torch.", "") if not isinstance(value, list) else "",
)
def test_each_where_it_gains(
    dtype: torch.dtype, vendor: str, has_amx: bool, few_rows: bool, replaced: list[type[nn.Module]]
) -> None:
    model = tied(dtype)
    count = speed_up(model, few_rows=few_rows, vendor=vendor, has_amx=has_amx)
    assert count == sum(each is not nn.Linear for each in replaced)
    assert kinds(model)[1:] == replaced
    assert model[2].weight is model[0].weight
    assert not model[1].training


@pytest.mark.parametrize(
    ("dtype", "has_amx"), [(torch.bfloat16, True), pytest.param(torch.float32, False, marks=needs_mkl)]
)
def test_packed_weights_are_in_memory_once(dtype: torch.dtype, has_amx: bool) -> None:
    model = tied(dtype)
    weight = weakref.ref(model[1].weight)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    assert speed_up(model, vendor=INTEL, has_amx=has_amx) == 1
    assert weight() is None
    for name, each in model.state_dict().items():
        torch.testing.assert_close(each, before[name], rtol=0, atol=0)


def test_the_file_that_weights_came_from_is_let_go_of(tmp_path: Path) -> None:
    """It is mapped into memory as long as one tensor is."""
    save_file({"weight": torch.randn(24, 24), "other": torch.randn(40, 24)}, tmp_path / "weights")
    read = load_file(tmp_path / "weights")
    model = nn.Sequential(nn.Embedding(40, 24), nn.Linear(24, 24, bias=False)).requires_grad_(False)
    model[0].weight.data, model[1].weight.data = read.pop("other"), read.pop("weight")
    mapped = model[0].weight.untyped_storage().data_ptr()
    assert speed_up(model, few_rows=True, vendor=AMD, has_amx=False) == 1
    assert model[0].weight.untyped_storage().data_ptr() != mapped


@needs_mkl
def test_what_mkl_multiplies_wrong_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mkl, "is_right", lambda base, packed: base.in_features != 24)
    model = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(30, 24)).requires_grad_(False)
    with caplog.at_level(logging.WARNING):
        assert speed_up(model, vendor=INTEL, has_amx=False) == 1
    assert kinds(model) == [nn.Linear, nn.Linear, MklLinear]
    assert caplog.messages == ["MKL multiplies packed weights of (24, 24) wrong here: they stay as they are"]
