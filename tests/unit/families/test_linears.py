"""Products of other Linears are those of torch's own, and weights are read as they were."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from fmplex_backend.families import mkl
from fmplex_backend.families.linears import OtherLinear, PackedLinear, weights_of
from fmplex_backend.families.mkl import MklLinear
from fmplex_backend.families.onednn import OneDnnLinear, PackedOneDnnLinear

KINDS = [OneDnnLinear, PackedOneDnnLinear]
DTYPES: dict[type[OtherLinear], torch.dtype] = {PackedOneDnnLinear: torch.bfloat16}
if mkl.is_there():
    KINDS.append(MklLinear)
PACKED = [kind for kind in KINDS if issubclass(kind, PackedLinear)]
every = pytest.mark.parametrize("kind", KINDS)
packed_ones = pytest.mark.parametrize("kind", PACKED)


def linear(kind: type[OtherLinear], *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(24, 40, bias=bias).to(DTYPES.get(kind, torch.float32)).requires_grad_(False).eval()


def numbers(kind: type[OtherLinear], *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DTYPES.get(kind, torch.float32))


@every
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (1, 5, 24), (3, 5, 24), (700, 24), (0, 24)])
def test_products_are_the_same(kind: type[OtherLinear], shape: tuple[int, ...], bias: bool) -> None:
    base = linear(kind, bias=bias)
    x = numbers(kind, *shape)
    with torch.inference_mode():
        torch.testing.assert_close(kind(base)(x), base(x))


@every
def test_an_input_that_is_not_contiguous(kind: type[OtherLinear]) -> None:
    base = linear(kind)
    x = numbers(kind, 24, 9).T
    with torch.no_grad():
        torch.testing.assert_close(kind(base)(x), base(x))


@every
def test_gradients_go_through_it(kind: type[OtherLinear]) -> None:
    base = linear(kind)
    x = numbers(kind, 3, 24).requires_grad_()
    kind(base)(x).sum().backward()
    torch.testing.assert_close(x.grad, base.weight.sum(dim=0).expand(3, 24))


@every
def test_it_can_be_recorded_for_any_number_of_rows(kind: type[OtherLinear]) -> None:
    base = linear(kind)
    model = nn.Sequential(kind(base), nn.ReLU())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # see `torchscript.scripted`
        recorded = torch.jit.trace(model, numbers(kind, 2, 24))
        for rows in (1, 2, 33):
            x = numbers(kind, rows, 24)
            torch.testing.assert_close(recorded(x), base(x).relu())


@every
def test_it_is_in_the_mode_of_what_it_replaces(kind: type[OtherLinear]) -> None:
    assert not kind(linear(kind)).training
    assert kind(linear(kind).train()).training


@packed_ones
def test_a_copy_has_its_own_weights_and_no_packed_ones(kind: type[PackedLinear]) -> None:
    """As a copy that `modules_to_save` loads others into."""
    packed = kind(linear(kind))
    copied = copy.deepcopy(packed)
    assert (type(copied), copied.training) == (nn.Linear, False)
    with torch.no_grad():
        copied.weight.mul_(2)
        x = numbers(kind, 3, 24)
        torch.testing.assert_close(copied(x) - copied.bias, 2 * (packed(x) - packed.bias), rtol=0.1, atol=0.1)


@packed_ones
def test_packed_weights_are_read_as_they_were(kind: type[PackedLinear]) -> None:
    base = linear(kind)
    model = nn.Sequential(kind(base))
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    torch.testing.assert_close(model.state_dict()["0.weight"], base.weight, rtol=0, atol=0)
    torch.testing.assert_close(model[0].weight, base.weight, rtol=0, atol=0)


@packed_ones
def test_weights_that_passes_read_are_made_once(kind: type[PackedLinear]) -> None:
    packed = kind(linear(kind))
    assert packed.weight is not packed.weight
    with torch.inference_mode():
        assert packed.weight is packed.weight


@packed_ones
def test_packed_weights_are_counted(kind: type[PackedLinear]) -> None:
    model = nn.Sequential(kind(linear(kind)), nn.Embedding(5, 3))
    assert weights_of(model) == 24 * 40 + 40 + 5 * 3


@pytest.mark.skipif(not mkl.is_there(), reason="a torch without MKL")
def test_what_mkl_could_not_multiply_would_be_seen() -> None:
    """The operator multiplies with the weights as they were where it cannot take the packed ones: those are NaN."""
    packed = MklLinear(linear(MklLinear))
    with torch.inference_mode():
        assert torch.ops.mkl._mkl_linear(numbers(MklLinear, 3, 24), *packed.operands, None, 2).isnan().all()


@pytest.mark.skipif(not mkl.is_there(), reason="a torch without MKL")
def test_products_that_are_wrong_are_found() -> None:
    base, other = linear(MklLinear), nn.Linear(24, 40)
    assert mkl.is_right(base, MklLinear(base))
    assert not mkl.is_right(base, MklLinear(other))
