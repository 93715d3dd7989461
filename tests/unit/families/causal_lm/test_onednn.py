"""Products through oneDNN are those of torch's own Linear, and only where they gain."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fmplex_backend.families.causal_lm.onednn import OneDnnLinear, speed_up

AMD = "AuthenticAMD"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (1, 5, 24), (3, 5, 24)])
def test_products_are_the_same(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    base = nn.Linear(24, 40, bias=bias).requires_grad_(False)
    x = torch.randn(shape)
    with torch.inference_mode():
        torch.testing.assert_close(OneDnnLinear(base)(x), base(x))


def test_an_input_that_is_not_contiguous() -> None:
    base = nn.Linear(24, 40).requires_grad_(False)
    x = torch.randn(24, 9).T
    with torch.no_grad():
        torch.testing.assert_close(OneDnnLinear(base)(x), base(x))


def test_gradients_go_through_it() -> None:
    base = nn.Linear(24, 40).requires_grad_(False)
    x = torch.randn(3, 24, requires_grad=True)
    OneDnnLinear(base)(x).sum().backward()
    torch.testing.assert_close(x.grad, base.weight.sum(dim=0).expand(3, 24))


def test_weights_stay_shared_and_other_modules_as_they_are() -> None:
    model = nn.Sequential(nn.Embedding(40, 24), nn.Linear(24, 40, bias=False), nn.Linear(24, 4).bfloat16())
    model[1].weight = model[0].weight  # tied, as a language model's head
    assert speed_up(model.eval(), vendor=AMD) == 1
    assert isinstance(model[1], OneDnnLinear)
    assert model[1].weight is model[0].weight
    assert not model[1].training
    assert type(model[2]) is nn.Linear


@pytest.mark.parametrize("vendor", ["GenuineIntel", ""])
def test_where_it_gains_nothing_or_nothing_is_known(vendor: str) -> None:
    model = nn.Sequential(nn.Linear(24, 40))
    assert speed_up(model, vendor=vendor) == 0
    assert type(model[0]) is nn.Linear
