"""A safetensors file is either read whole or refused with a name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fmplex_backend.errors import TaskRefused
from fmplex_backend.safetensors_header import expect_shape
from fmplex_backend.weights import read_safetensors


def refused(file: Path) -> TaskRefused:
    with pytest.raises(TaskRefused) as caught:
        read_safetensors(file)
    assert caught.value.file == str(file)
    assert caught.value.remedy
    return caught.value


def test_all_tensors_as_they_are_stored(tmp_path: Path) -> None:
    tensors = {"a": torch.rand(3, 2), "b": torch.arange(4), "c": torch.ones(2, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "w.safetensors")
    read = read_safetensors(tmp_path / "w.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_what_was_read_stays_when_the_file_is_written_over(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(5000)}, file)
    read = read_safetensors(file)["a"]
    with file.open("r+b") as stream:  # in place; cut short, a mapped file would end this process
        stream.write(bytes(file.stat().st_size))
    assert torch.equal(read, torch.ones(5000))


def test_missing(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.safetensors").problem == "there is no such file"
    assert "it is a directory" in refused(tmp_path).problem


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.safetensors")
    assert "it is a FIFO" in refused(tmp_path / "w.safetensors").problem


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_cut_short(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"a": torch.rand(30)}, file)
    file.write_bytes(file.read_bytes()[:keep])
    assert "not readable as safetensors" in refused(file).problem


def test_a_pickle_under_that_name(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    torch.save({"a": torch.rand(3)}, file)
    assert "not readable as safetensors" in refused(file).problem


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numbers_whose_sum_is_none(tmp_path: Path, dtype: torch.dtype) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"large": torch.full((3,), torch.finfo(dtype).max, dtype=dtype)}, file)
    assert bool(torch.isfinite(read_safetensors(file)["large"]).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_no_numbers(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"good": torch.ones(3), "bad": torch.tensor([1.0, value], dtype=dtype)}, file)
    error = refused(file)
    assert (error.field, error.problem) == ("bad", "it holds NaN or infinite values")


@pytest.mark.parametrize("shape", [(2, 3), (-1, 3), (2, -1), (-1, -1)])
def test_a_shape_that_fits(tmp_path: Path, shape: tuple[int, ...]) -> None:
    expect_shape(tmp_path, "a", torch.ones(2, 3), shape, "the head")


@pytest.mark.parametrize("shape", [(3, 2), (2,), (2, 3, 1), (), (-1, 2)])
def test_a_shape_that_does_not(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(TaskRefused) as caught:
        expect_shape(tmp_path, "a", torch.ones(2, 3), shape, "the head")
    assert caught.value.field == "a"
    assert "[2, 3]" in caught.value.problem
    assert f"the head needs {list(shape)}" in caught.value.problem
