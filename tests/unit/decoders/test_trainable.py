"""Heads in training: the tensors that are saved are those that the served head reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fmplex_backend.decoders import Classifier, Regressor
from fmplex_backend.decoders.head import Head
from fmplex_backend.decoders.trainable import TrainableHead, fit_linear

HIDDEN = 6


def head_of(hidden: tuple[int, ...] = (), *, normalize: bool = False) -> TrainableHead:
    torch.manual_seed(0)
    head = Classifier(["a", "b", "c"], hidden=hidden, activation="gelu", normalize=normalize).trainable(HIDDEN)
    head.module.eval()
    return head


@pytest.mark.parametrize("hidden", [(), (8,), (8, 4)])
def test_a_trained_head_is_the_served_head(tmp_path: Path, hidden: tuple[int, ...]) -> None:
    head = head_of(hidden)
    save_file(head.tensors(), tmp_path / "decoder.safetensors")
    x = torch.randn(5, HIDDEN)
    served = Head(tmp_path / "decoder.safetensors", "gelu", HIDDEN)
    with torch.inference_mode():
        assert np.allclose(served(x.numpy()), head.values(x).numpy(), atol=1e-6)
    assert served.outputs == 3


def test_tensors_of_another_head_change_nothing() -> None:
    head, other = head_of((8,)), head_of()
    before = head.tensors()
    assert not head.fill(other.tensors())
    assert all(torch.equal(before[name], each) for name, each in head.tensors().items())
    assert head.fill({name: each + 1 for name, each in before.items()})
    assert all(torch.equal(before[name] + 1, each) for name, each in head.tensors().items())


def test_only_a_single_layer_is_linear() -> None:
    assert head_of().linear is not None
    assert head_of((8,)).linear is None


@pytest.mark.parametrize("normalize", [False, True])
def test_a_linear_head_is_fitted_to_vectors_of_any_scale(normalize: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, HIDDEN, generator=generator)
    targets = x[:, :3].argmax(dim=1)
    head = head_of(normalize=normalize)
    scale = 1.0 if normalize else torch.tensor([1e-3, 1.0, 1e3, 1.0, 5.0, 0.1])
    fit_linear(head, x * scale, targets, decay=1e-4)
    with torch.inference_mode():
        assert float((head.values(x * scale).argmax(dim=1) == targets).float().mean()) > 0.95


def test_a_regression_is_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, HIDDEN, generator=generator)
    weight, bias = torch.randn(2, HIDDEN, generator=generator), torch.tensor([3.0, -1.0])
    head = Regressor(2).trainable(HIDDEN)
    fit_linear(head, x, x @ weight.T + bias, decay=0.0)
    found = head.tensors()
    assert torch.allclose(found["weight"], weight, atol=1e-2)
    assert torch.allclose(found["bias"], bias, atol=1e-2)
