"""Classes of installed packages: found by entry point, made, and filled with weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from task_fixtures import install
from torch import nn

from fmplex_backend.errors import TaskRefused
from fmplex_backend.plugins import load_weights, make_plugin, with_weights

GROUP = "fmplex.decoders"


class Wide(nn.Linear):
    """A plugin."""

    def __init__(self, options: dict[str, Any], width: int) -> None:
        super().__init__(width, options["outputs"])


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, GROUP, {"wide": f"{__name__}:Wide", "gone": "no.such.module:Wide"})


def test_it_is_made_of_options_and_a_width() -> None:
    made = make_plugin(GROUP, nn.Linear, "wide", {"outputs": 3}, "task.json", 5)
    assert (made.in_features, made.out_features) == (5, 3)


@pytest.mark.parametrize(
    ("name", "options", "base", "match"),
    [
        ("wild", {}, nn.Linear, "registers a decoder 'wild'; registered: gone, wide. Install"),
        ("wide", {}, nn.Linear, "cannot be made: KeyError: 'outputs'. Correct decoder.options"),
        ("gone", {}, nn.Linear, "cannot be made: ModuleNotFoundError"),
        ("wide", {"outputs": 1}, nn.Embedding, "is not a Embedding. Inherit fmplex.Embedding"),
    ],
)
def test_what_is_wrong_is_named(name: str, options: Any, base: type[nn.Module], match: str) -> None:
    with pytest.raises(TaskRefused, match=match) as caught:
        make_plugin(GROUP, base, name, options, "task.json", 5)
    assert (caught.value.file, caught.value.field) == ("task.json", "decoder.name")


def test_weights_are_filled_in(tmp_path: Path) -> None:
    file, module = tmp_path / "decoder.safetensors", nn.Linear(2, 1)
    save_file({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, file)
    load_weights(module, file, "decoder")
    assert module(torch.ones(1, 2)).item() == 2
    load_weights(nn.ReLU(), tmp_path / "none", "decoder")  # nothing to fill


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        (
            {"weight": torch.ones(1, 2)},
            "bias: the decoder has the tensors bias, weight, the file weight. Save",
        ),
        ({"weight": torch.ones(2, 2), "bias": torch.zeros(1)}, r"weight: its shape is \[2, 2\]"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, tensors: dict[str, torch.Tensor], match: str) -> None:
    save_file(tensors, tmp_path / "decoder.safetensors")
    with pytest.raises(TaskRefused, match=match):
        load_weights(nn.Linear(2, 1), tmp_path / "decoder.safetensors", "decoder")


class Vast(nn.Linear):
    """A plugin whose options decide how large it is; how often each was made with memory is counted."""

    made = 0

    def __init__(self, outputs: int) -> None:
        super().__init__(2, outputs)
        Vast.made += not self.weight.is_meta


def test_sizes_are_compared_before_they_take_memory(tmp_path: Path) -> None:
    file = tmp_path / "decoder.safetensors"
    save_file({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, file)
    with pytest.raises(TaskRefused, match=r"bias: its shape is \[1\], the decoder needs \[1099511627776\]"):
        with_weights(lambda: Vast(1 << 40), file, "decoder")
    assert Vast.made == 0
    module = with_weights(lambda: Vast(1), file, "decoder")
    assert module(torch.ones(1, 2)).item() == 2


def test_a_module_that_cannot_be_made_without_memory(tmp_path: Path) -> None:
    class Reads(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 1)
            if not float(torch.ones(1)):  # no number can be read of a tensor on the meta device
                raise AssertionError

    def make() -> Reads:
        try:
            return Reads()
        except RuntimeError as error:
            raise TaskRefused("task.json", "decoder.name", str(error), "Mend it") from None

    file = tmp_path / "decoder.safetensors"
    save_file({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, file)
    assert with_weights(make, file, "decoder")(torch.ones(1, 2)).item() == 2


@pytest.mark.parametrize(
    ("own", "stored", "match"),
    [
        (torch.float32, torch.int8, "buffer: it holds I8, not F64 or F32"),
        (torch.int64, torch.int32, "buffer: it holds I32, not I64"),
        (torch.bool, torch.uint8, "buffer: it holds U8, not BOOL"),
        (torch.float32, torch.float16, ""),
        (torch.int64, torch.int64, ""),
        (torch.complex64, torch.complex64, ""),
    ],
)
def test_dtypes_are_those_of_the_module(tmp_path: Path, own: torch.dtype, stored: torch.dtype, match: str) -> None:
    file, module = tmp_path / "decoder.safetensors", nn.Module()
    module.register_buffer("buffer", torch.zeros(2).to(own))
    save_file({"buffer": torch.ones(2).to(stored)}, file)
    if match:
        with pytest.raises(TaskRefused, match=match):
            load_weights(module, file, "decoder")
    else:
        load_weights(module, file, "decoder")
        assert module.buffer.dtype == own
        assert bool((module.buffer == 1).all())


def test_nan_in_a_complex_tensor(tmp_path: Path) -> None:
    file, module = tmp_path / "decoder.safetensors", nn.Module()
    module.register_buffer("buffer", torch.zeros(2, dtype=torch.complex64))
    save_file({"buffer": torch.full((2,), complex("nan"), dtype=torch.complex64)}, file)
    with pytest.raises(TaskRefused, match="buffer: it holds NaN"):
        load_weights(module, file, "decoder")
