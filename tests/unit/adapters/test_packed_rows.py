"""LoRA of passes whose rows are tokens of many sequences: each token gets its own adapter's product and no other's."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from fmplex_backend.adapters import multi_lora
from fmplex_backend.adapters.multi_lora import FEW_TOKENS, KEPT_MIXES, AdaptedLinear, AdapterBank, _Pairs
from fmplex_backend.adapters.peft import Adapter, LoraWeights

SIZES = {"first": (12, 20), "second": (20, 12)}
EVERY = ("first", "second")


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(*SIZES["first"]), nn.Linear(*SIZES["second"])

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(x))
        return found


class Rig:
    def __init__(self) -> None:
        self.model = Layers().requires_grad_(False)
        self.bank = AdapterBank(self.model, torch.device("cpu"), stacked=False)
        self.pairs: dict[Adapter, dict[str, LoraWeights]] = {}

    def adapter(self, rank: int, modules: Sequence[str] = EVERY, scale: float = 1.0) -> Adapter:
        own = {
            name: LoraWeights(scale * torch.randn(rank, SIZES[name][0]), torch.randn(rank, SIZES[name][1]))
            for name in modules
        }
        adapter = Adapter("lora", lora=dict(own))
        self.bank.attach(adapter)
        self.pairs[adapter] = own
        return adapter

    def check(self, adapters: Sequence[Adapter | None], x: Tensor | None = None) -> None:
        """Rows in the order given, which has each bucket's side by side."""
        x = torch.randn(len(adapters), 12) if x is None else x
        with self.bank.applied(adapters, packed=True), torch.inference_mode():
            have = self.model(x[None])[0]
        plain = Layers().requires_grad_(False)
        for row, adapter in enumerate(adapters):
            state = x[row]
            for name in EVERY:
                out = getattr(plain, name)(state)
                if adapter and (own := self.pairs[adapter].get(name)):
                    out = out + state @ own.a.T @ own.b
                state = out
            torch.testing.assert_close(have[row], state, rtol=1e-4, atol=1e-4)


@pytest.fixture(params=[0, 1 << 30], ids=["alone", "joined"])
def rig(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(multi_lora, "MOST_JOINED", {4: request.param})
    return Rig()


def test_tokens_of_many_adapters_and_of_none(rig: Rig) -> None:
    own = [rig.adapter(4) for _ in range(5)]
    rig.check([None, None, own[0], own[0], own[1], own[2], own[3], own[3], own[4]])
    rig.check([own[4]])
    rig.check([None])


def test_ranks_and_modules_may_differ(rig: Rig) -> None:
    one, two, some, other = rig.adapter(3), rig.adapter(4), rig.adapter(4, ["second"]), rig.adapter(2, ["first"])
    rig.check([one, two, some, some, other])
    wide = [rig.adapter(9), rig.adapter(16, ["first"])]  # another bucket
    rig.check([one, some, other, *wide, wide[1]])


def test_chunks_of_prompts_stand_behind_single_tokens(rig: Rig) -> None:
    own = [rig.adapter(4) for _ in range(3)]
    chunk = FEW_TOKENS + 3
    rig.check([None, *own, own[1], *[own[0]] * chunk, *[own[2]] * 2, *[own[1]] * chunk, None, None])


def test_what_a_foreign_adapter_makes_of_a_row_may_overflow(rig: Rig) -> None:
    small, huge = rig.adapter(4, scale=1e-20), rig.adapter(4, scale=1e30)
    x = torch.randn(4, 12)
    x[:2] *= 1e18
    x[2:] = 0
    rig.check([small, small, huge, huge], x)


def test_a_slot_holds_nothing_of_its_former_owner(rig: Rig) -> None:
    stays, goes = rig.adapter(4), rig.adapter(4)
    rig.check([stays, goes])
    rig.bank.detach(goes)
    comes = rig.adapter(4)
    assert comes.slot == goes.slot
    rig.check([stays, comes])


def test_few_mixes_are_kept() -> None:
    rig = Rig()
    own = [rig.adapter(4) for _ in range(6)]
    for first in range(5):
        rig.check(own[first : first + 2])
    linear = rig.model.get_submodule("first")
    assert isinstance(linear, AdaptedLinear)
    (pairs,) = linear.stacks.values()
    assert isinstance(pairs, _Pairs)
    assert len(pairs._joined) == KEPT_MIXES
