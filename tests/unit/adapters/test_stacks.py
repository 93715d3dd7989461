"""What LoRA adds to a language model's step does not depend on how it is multiplied."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.adapters.peft import Adapter, LoraWeights
from fmplex_backend.adapters.stacks import FEW

IN, OUT = 24, 40
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1}


def adapter(seed: int, rank: int, dtype: torch.dtype) -> Adapter:
    numbers = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, IN, generator=numbers), torch.randn(rank, OUT, generator=numbers)
    return Adapter("lora", lora={"0": LoraWeights(a.to(dtype), b.to(dtype))})


class Steps:
    """A bank with adapters of ranks 3, 4 and 2, and its steps."""

    def __init__(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.dtype = dtype
        self.model = nn.Sequential(nn.Linear(IN, OUT)).to(dtype).requires_grad_(False)
        self.plain = nn.Linear(IN, OUT).to(dtype)
        self.plain.load_state_dict(self.model[0].state_dict())
        self.bank = AdapterBank(self.model, torch.device("cpu"), stacked=False)
        self.adapters = [adapter(seed, rank, dtype) for seed, rank in enumerate((3, 4, 2))]
        self.weights: dict[Adapter, LoraWeights] = {each: each.lora["0"] for each in self.adapters}
        for each in self.adapters:
            self.bank.attach(each)

    def check(self, counts: list[int], adapters: list[Adapter | None], seed: int = 0) -> None:
        """A step of so many tokens of each."""
        rows = [each for each, count in zip(adapters, counts, strict=True) for _ in range(count)]
        x = torch.randn(1, len(rows), IN, generator=torch.Generator().manual_seed(seed)).to(self.dtype)
        with torch.inference_mode(), self.bank.applied(rows, packed=True):
            found = self.model(x)[0]
        torch.testing.assert_close(found, self._wanted(x[0], rows), rtol=0, atol=TOLERANCE[self.dtype] * 10)

    def _wanted(self, x: Tensor, rows: list[Adapter | None]) -> Tensor:
        wanted = []
        for each, row in zip(rows, x, strict=True):
            own = self.plain(row[None]).detach().float()
            if each is not None:
                own += row[None].float() @ self.weights[each].a.float().T @ self.weights[each].b.float()
            wanted.append(own)
        return torch.cat(wanted).to(self.dtype)


@pytest.fixture(params=TOLERANCE, ids=str)
def steps(request: pytest.FixtureRequest) -> Steps:
    return Steps(request.param)


@pytest.mark.parametrize("counts", [[1, 2, 1, 1], [0, 0, 1, 0], [3, FEW, 1, 0], [0, 2, FEW, 90], [0, 5, 0, 5]])
def test_few_tokens_and_many(steps: Steps, counts: list[int]) -> None:
    steps.check(counts, [None, *steps.adapters])


def test_a_step_of_the_same_adapters_takes_what_was_planned(steps: Steps) -> None:
    for seed in range(3):
        steps.check([1, 2, 1], [None, *steps.adapters[:2]], seed)
    with steps.bank.applied([None, steps.adapters[0]], packed=True):
        (planned,) = steps.bank.current.parts
    with steps.bank.applied([None, steps.adapters[0]], packed=True):
        assert steps.bank.current.parts == (planned,)
        assert steps.bank.current.parts[0] is planned


def test_a_slot_that_another_adapter_has_now_is_planned_anew(steps: Steps) -> None:
    first = steps.adapters[0]
    steps.check([2, 1], [first, steps.adapters[1]])
    steps.bank.detach(first)
    other = adapter(9, 3, steps.dtype)
    steps.weights[other] = other.lora["0"]
    steps.bank.attach(other)
    assert other.slot == 1
    steps.check([2, 1], [other, steps.adapters[1]])


def test_numbers_beyond_all_bounds_stay_with_the_tokens_they_are_of(steps: Steps) -> None:
    """What an adapter makes of another's token is left out, whatever it is."""
    huge = Adapter(
        "lora",
        lora={"0": LoraWeights(torch.full((3, IN), 3e38).to(steps.dtype), torch.zeros(3, OUT, dtype=steps.dtype))},
    )
    steps.weights[huge] = huge.lora["0"]
    steps.bank.attach(huge)
    rows: list[Adapter | None] = [steps.adapters[0], huge]
    x = torch.ones(1, 2, IN, dtype=steps.dtype)
    with torch.inference_mode(), steps.bank.applied(rows, packed=True):
        found = steps.model(x)[0]
    torch.testing.assert_close(found[:1], steps._wanted(x[0, :1], rows[:1]), rtol=0.02, atol=0.1)
