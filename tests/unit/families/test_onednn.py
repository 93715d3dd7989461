"""Products through oneDNN are those of torch's own Linear, and only where they gain."""

from __future__ import annotations

import copy
import warnings
import weakref

import pytest
import torch
from torch import nn

from fmplex_backend.families.onednn import OneDnnLinear, PackedLinear, pack, speed_up

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


# -- weights in oneDNN's own order


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (1, 5, 24), (3, 5, 24)])
def test_products_of_packed_weights_are_the_same(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    base = nn.Linear(24, 40, bias=bias).bfloat16().requires_grad_(False)
    x = torch.randn(shape).bfloat16()
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(base)(x), base(x))


def test_packed_weights_can_be_recorded() -> None:
    model = nn.Sequential(PackedLinear(nn.Linear(24, 40).bfloat16().requires_grad_(False)), nn.ReLU())
    x = torch.randn(3, 24).bfloat16()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # see `torchscript.scripted`
        recorded = torch.jit.trace(model, torch.randn(2, 24).bfloat16())
        torch.testing.assert_close(recorded(x), model(x))


def test_a_copy_has_its_own_weights_and_no_packed_ones() -> None:
    """As a copy that `modules_to_save` loads others into."""
    packed = PackedLinear(nn.Linear(24, 40).bfloat16().requires_grad_(False)).eval()
    copied = copy.deepcopy(packed)
    assert (type(copied), copied.training) == (nn.Linear, False)
    with torch.no_grad():
        copied.weight.mul_(2)
        x = torch.randn(3, 24).bfloat16()
        torch.testing.assert_close(copied(x) - copied.bias, 2 * (packed(x) - packed.bias), rtol=0.1, atol=0.1)


def test_packed_weights_are_read_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(24, 40).bfloat16()).requires_grad_(False)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    assert pack(model, has_amx=True) == 1
    assert list(model.state_dict()) == list(before)
    for name, each in before.items():
        torch.testing.assert_close(model.state_dict()[name], each, rtol=0, atol=0)
    torch.testing.assert_close(model[0].weight, before["0.weight"], rtol=0, atol=0)


def test_gradients_go_through_packed_weights() -> None:
    base = nn.Linear(24, 40).bfloat16().requires_grad_(False)
    x = torch.randn(3, 24).bfloat16().requires_grad_()
    PackedLinear(base)(x).sum().backward()
    torch.testing.assert_close(x.grad, base.weight.sum(dim=0).expand(3, 24))


def test_linears_in_bfloat16_are_packed_where_there_is_amx() -> None:
    model = nn.Sequential(nn.Linear(24, 40).bfloat16(), nn.Linear(40, 4)).requires_grad_(False)
    assert pack(model, has_amx=False) == 0
    assert pack(model, has_amx=True) == 1
    assert [type(each) for each in model] == [PackedLinear, nn.Linear]


def test_packed_weights_are_in_memory_once() -> None:
    model = nn.Sequential(nn.Linear(24, 40).bfloat16()).requires_grad_(False)
    weight = weakref.ref(model[0].weight)
    assert pack(model, has_amx=True) == 1
    assert weight() is None


def test_weights_that_another_module_has_too_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Embedding(40, 24), nn.Linear(24, 24), nn.Linear(24, 40)).bfloat16().requires_grad_(False)
    model[2].weight = model[0].weight  # tied, as a language model's head
    assert pack(model, has_amx=True) == 1
    assert [type(each) for each in model[1:]] == [PackedLinear, nn.Linear]
    assert model[2].weight is model[0].weight
