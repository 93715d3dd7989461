"""A time-series model's passes, as they are recorded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fmplex_backend.families.recorded import LONGEST, RecordedForward, Way, repays
from fmplex_backend.families.time_series.anatomy import Anatomy


def recorded_series(model: Any, anatomy: Anatomy) -> RecordedForward | None:
    """The recording of a model, `False`: [2, n, steps, channels] as `Forward.packed` makes it -> `States`.

    None where rows are so long, or the model so large, that a pass has work enough to go through Python.
    """
    if anatomy.tokens > LONGEST or not repays(model):
        return None

    def states(packed: Tensor) -> tuple[Tensor, ...]:
        return tuple(anatomy.states(model, packed[0], packed[1] > 0))

    def sample(rows: int, tokens: int) -> tuple[Tensor]:
        """Rows that are whole, that are padded at their beginning, and that have gaps, in turn."""
        generator = torch.Generator().manual_seed(rows)
        context = anatomy.steps_of(tokens * anatomy.channels)
        shape = (rows, context, anatomy.channels)
        values, chance = torch.randn(shape, generator=generator), torch.rand(shape, generator=generator)
        step, kind = torch.arange(context)[:, None], (torch.arange(rows) % 3)[:, None, None]
        padded = (kind == 1) & (step < context * 3 // 4)
        observed = ~(padded | ((kind == 2) & (chance < 0.2)))
        return (torch.stack([torch.where(observed, values, 0.0), observed.float()]),)

    tokens = anatomy.patches + anatomy.extra  # of a channel: modules see these, whatever the channels do
    parts = (2, 1, 4) if anatomy.architecture.takes_shorter else (1, 1, 1)  # of the context
    shapes = [(rows, max(tokens // part, anatomy.extra + 2)) for rows, part in zip((3, 1, 5), parts, strict=True)]
    return RecordedForward(model, {False: Way("of series", states, sample, shapes)}, tokens)
