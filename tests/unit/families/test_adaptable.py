"""Which modules see rows one after the other, so that each can have its own adapter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fmplex_backend.families.adaptable import not_adaptable

TOKENS, WIDTH = 6, 8


class Rounds(nn.Module):
    """Adds to the states of several rows what a kernel for several rows rounds otherwise than one for one.

    Single elements that are all but zero then differ by more than themselves.
    """

    def forward(self, states: Tensor) -> Tensor:
        noise = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
        return states + 0.05 * noise if len(states) > 1 else states


class Model(nn.Module):
    """Rows of [t, h]. `across` sees the first token of every row, then the second: not row after row."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.rounds = Rounds()
        self.along, self.across, self.table, self.unused = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.register_buffer("shared", torch.ones(TOKENS, WIDTH))

    def forward(self, rows: Tensor) -> Tensor:
        states = self.along(self.rounds(rows)) + self.table(self.shared)
        return self.across(states.transpose(0, 1).flatten(0, 1))


def found() -> set[str]:
    torch.manual_seed(0)
    model = Model()
    return not_adaptable(model, model, (TOKENS, WIDTH))


def test_modules_that_see_another_order_one_table_or_nothing_take_no_adapter() -> None:
    assert found() == {"across", "table", "unused"}


def test_rounding_of_single_elements_is_no_other_order() -> None:
    torch.manual_seed(0)
    model = Model()
    rows = torch.randn(2, TOKENS, WIDTH)
    one, both = torch.cat([model.rounds(row[None]) for row in rows]), model.rounds(rows)
    assert not torch.allclose(one, both, rtol=0.05, atol=0.05)
    assert "along" not in found()
