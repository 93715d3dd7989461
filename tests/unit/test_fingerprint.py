"""Which weights a directory holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_fixtures import save_tiny
from safetensors.torch import save_file

from fmplex_backend.fingerprint import fingerprint

A, B = torch.arange(12.0).reshape(3, 4), torch.ones(5)


def of(directory: Path, **files: dict[str, torch.Tensor]) -> str | None:
    directory.mkdir()
    for name, tensors in files.items():
        save_file(tensors, directory / f"{name}.safetensors")
    return fingerprint(directory)


def test_no_weights(tmp_path: Path) -> None:
    assert of(tmp_path / "none") is None


def test_shards_and_their_order_do_not_matter(tmp_path: Path) -> None:
    one = of(tmp_path / "one", model={"a": A, "b": B})
    two = of(tmp_path / "two", shard2={"a": A}, shard1={"b": B})
    assert one == two
    assert one is not None
    assert one.startswith("sha256:")


@pytest.mark.parametrize(
    "other",
    [
        {"a": A, "c": B},
        {"a": A},
        {"a": A + 1e-6, "b": B},
        {"a": A.reshape(4, 3), "b": B},
        {"a": A.bfloat16(), "b": B},
        {"a": B, "b": A},
    ],
)
def test_names_values_shapes_and_dtypes_do(tmp_path: Path, other: dict[str, torch.Tensor]) -> None:
    assert of(tmp_path / "one", model={"a": A, "b": B}) != of(tmp_path / "two", model=other)


def test_metadata_does_not(tmp_path: Path) -> None:
    one = of(tmp_path / "one", model={"a": A})
    save_file({"a": A}, tmp_path / "one" / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(tmp_path / "one") == one


def test_two_trainings_of_one_shape(tmp_path: Path) -> None:
    marks = {fingerprint(save_tiny(tmp_path / str(seed), seed=seed)) for seed in (0, 1)}
    assert len(marks) == 2


def test_saving_again_keeps_it(tmp_path: Path) -> None:
    assert fingerprint(save_tiny(tmp_path / "a")) == fingerprint(save_tiny(tmp_path / "b"))
