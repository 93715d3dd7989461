"""The rows of a pass by the adapters that are applied to them, and how a module multiplies those of LoRA."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fmplex_backend.adapters.peft import Adapter

# What a run's own two products take before the first number, in multiplications of a CPU: some 10 and 40 us.
OVERHEAD = {torch.float32: 300_000, torch.bfloat16: 4_000_000}
# On a GPU these are launches, some 20 us at 2.5e13 multiplications a second: what others' ranks waste hardly counts.
OVERHEAD_ON_DEVICE = 500_000_000


@dataclass(frozen=True, slots=True)
class Product:
    """Runs of a part that one module multiplies together."""

    tokens: slice | None  # of the pass's, those of all rows one after the other; None: all
    slots: tuple[int, ...]
    foreign: Tensor | None  # [tokens, ranks]: what a token gets of other slots' A's; None of one slot


@dataclass(frozen=True, slots=True)
class LoraPart:
    """Rows [start, end) of the pass take their adapters from one bucket's stacks."""

    start: int
    end: int
    bucket: int
    runs: tuple[tuple[int, int, int], ...]  # (slot, first row, row after the last), in order; none while captured
    slots: Tensor  # [end - start]
    captured: bool = False  # into a CUDA graph, whose rows have other slots at each replay
    planned: dict[Hashable, Any] = field(default_factory=dict)  # by modules' weights, what they multiply: see `Pairs`
    _products: dict[Hashable, list[Product]] = field(default_factory=dict)  # by what modules have in common

    def products(self, ranks: tuple[int, ...], tokens: int, of: int, width: int, dtype: torch.dtype) -> list[Product]:
        """How a module multiplies the runs, whose weights have these ranks there; 0: none.

        Args:
            tokens: of a row.
            of: tokens of all rows of the pass.
            width: of the module's inputs and outputs together.
        """
        key = (ranks, tokens, width, dtype)
        found = self._products.get(key)
        if found is None:
            on_cpu = self.slots.device.type == "cpu"
            overhead = OVERHEAD.get(dtype, OVERHEAD[torch.bfloat16]) if on_cpu else OVERHEAD_ON_DEVICE
            joined = self._joined(ranks, overhead / (tokens * width))
            found = self._products[key] = [self._product(own, ranks, tokens, of) for own in joined]
        return found

    def _joined(self, ranks: tuple[int, ...], worth: float) -> Iterator[list[int]]:
        """The runs by product. One joins those before it where that saves more than it wastes.

        Args:
            worth: of a run's own products, in rows times ranks.
        """
        own: list[int] = []
        used = 0  # rows times ranks that are not wasted
        for number, (_, start, end) in enumerate(self.runs):
            if not ranks[number]:
                continue
            rows = end - (self.runs[own[0]][1] if own else start)
            rank, more = sum(ranks[each] for each in own) + ranks[number], (end - start) * ranks[number]
            if own and rows * rank - used - more > worth * len(own):
                yield own
                own, used = [], 0
            own.append(number)
            used += more
        if own:
            yield own

    def _product(self, runs: Sequence[int], ranks: tuple[int, ...], tokens: int, of: int) -> Product:
        slots, first, end = tuple(self.runs[each][0] for each in runs), self.runs[runs[0]][1], self.runs[runs[-1]][2]
        foreign = None
        if len(runs) > 1:
            columns = [slot for each, slot in zip(runs, slots, strict=True) for _ in range(ranks[each])]
            of_columns = torch.tensor(columns, device=self.slots.device)
            of_rows = self.slots[first - self.start : end - self.start].repeat_interleave(tokens)
            foreign = of_rows[:, None] != of_columns
        own = slice(first * tokens, end * tokens)
        return Product(None if own == slice(0, of) else own, slots, foreign)


@dataclass(frozen=True, slots=True)
class SoloPart:
    """Rows [start, end) of the pass belong to one adapter that is applied on its own."""

    start: int
    end: int
    adapter: Adapter


def parts_of(adapters: Sequence[Adapter | None], device: torch.device) -> Iterator[LoraPart | SoloPart]:
    """Of rows that are sorted, see `AdapterBank.order`."""
    start = 0
    while start < len(adapters):
        first, end = adapters[start], start + 1
        if first is None:
            start = end
            continue
        shared = first.batched
        while end < len(adapters) and _same_part(first, adapters[end]):
            end += 1
        if shared:
            slots = [adapter.slot for adapter in adapters[start:end] if adapter is not None]
            yield LoraPart(start, end, first.bucket, _runs(slots, start), torch.tensor(slots, device=device))
        else:
            yield SoloPart(start, end, first)
        start = end


def _runs(slots: Sequence[int], start: int) -> tuple[tuple[int, int, int], ...]:
    """Run-length encoding of `slots`, whose first entry is row `start`: (slot, first row, row after the last)."""
    runs = []
    for slot, group in itertools.groupby(slots):
        end = start + sum(1 for _ in group)
        runs.append((slot, start, end))
        start = end
    return tuple(runs)


def _same_part(first: Adapter, other: Adapter | None) -> bool:
    if other is None:
        return False
    return other is first or (first.batched and other.batched and other.bucket == first.bucket)
