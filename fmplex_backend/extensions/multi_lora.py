"""Many adapters in one pass over the backbone, picked row by row.

Every Linear that any adapter targets is wrapped once. LoRA weights of similar rank (a bucket: the next power of two)
lie stacked, slot 0 all zeros, so a pass gathers its rows' slots and adds x @ a[slots].T @ b[slots] with two batched
products per module, whatever the mix (Punica and S-LoRA do the same with kernels of their own). A CPU, which starts a
product at no cost, multiplies slot by slot instead: nothing is stacked, padded or gathered. Rows are sorted so that
each bucket, each slot in it, and each adapter that cannot be stacked, is one slice of the batch; rows with no adapter
pay nothing.

Threads may run passes side by side, each over rows of its own; nothing is attached meanwhile.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmplex_backend.extensions.adapters import Adapter, LoraWeights

MIN_BUCKET = 4


@dataclass(frozen=True, slots=True)
class _LoraPart:
    """Rows [start, end) of the pass take their adapters from one bucket's stacks."""

    start: int
    end: int
    bucket: int
    runs: tuple[tuple[int, int, int], ...]  # slot, first row, row after the last: as the rows are sorted
    slots: Tensor  # [end - start]


@dataclass(frozen=True, slots=True)
class _SoloPart:
    """Rows [start, end) of the pass belong to one adapter that is applied on its own."""

    start: int
    end: int
    adapter: Adapter


class _Stack:
    """One module's LoRA weights of one bucket, by slot: for devices that take all rows in one product."""

    def __init__(self, linear: nn.Linear, rank: int, slots: int) -> None:
        self.filled: set[int] = set()
        self.a = linear.weight.new_zeros(slots, rank, linear.in_features)  # [slots, r, in]
        self.b = linear.weight.new_zeros(slots, rank, linear.out_features)  # [slots, r, out]

    def grow(self, slots: int) -> None:
        """Make room for that many slots; new ones are zero."""
        more = slots - len(self.a)
        self.a = torch.cat([self.a, self.a.new_zeros(more, *self.a.shape[1:])])
        self.b = torch.cat([self.b, self.b.new_zeros(more, *self.b.shape[1:])])

    def put(self, slot: int, weights: LoraWeights) -> None:
        """Fill a slot; the rest of a smaller rank stays zero."""
        self.a[slot, : weights.rank] = weights.a
        self.b[slot, : weights.rank] = weights.b
        self.filled.add(slot)

    def clear(self, slot: int) -> None:
        """Zero a slot."""
        if slot in self.filled:
            self.a[slot].zero_()
            self.b[slot].zero_()
            self.filled.discard(slot)

    def add(self, part: _LoraPart, x: Tensor, y: Tensor) -> None:
        """x: [n, t, in], y: [n, t, out] of the part's rows; y changes."""
        low = torch.bmm(x, self.a[part.slots].mT)  # [n, t, r]
        y.baddbmm_(low, self.b[part.slots])


class _Pairs:
    """The same for a CPU: every slot's weights as they are, multiplied with the slot's rows."""

    def __init__(self) -> None:
        self.filled: dict[int, LoraWeights] = {}

    def grow(self, slots: int) -> None:
        """There is always room."""

    def put(self, slot: int, weights: LoraWeights) -> None:
        """Fill a slot."""
        self.filled[slot] = weights

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        self.filled.pop(slot, None)

    def add(self, part: _LoraPart, x: Tensor, y: Tensor) -> None:
        """x: [n, t, in], y: [n, t, out] of the part's rows; y changes."""
        for slot, start, end in part.runs:
            if weights := self.filled.get(slot):
                flat = x[start - part.start : end - part.start].flatten(0, 1)  # [rows * t, in]
                low = nn.functional.linear(flat, weights.a)  # [rows * t, r]
                rows = y[start - part.start : end - part.start]
                rows.view(-1, y.shape[-1]).addmm_(low, weights.b)  # never a copy


class AdaptedLinear(nn.Module):
    """A shared Linear plus whatever the rows of the pass at hand bring along."""

    def __init__(self, base: nn.Linear, path: str, bank: AdapterBank) -> None:
        super().__init__()
        self.base = base
        self.path = path
        self.stacks: dict[int, _Stack | _Pairs] = {}  # by bucket
        object.__setattr__(self, "bank", bank)

    @property
    def weight(self) -> Tensor:
        """The shared weight: some models read it to learn a dtype."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The shared bias."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """x: [rows, t, in] -> [rows, t, out], or both without the t: a pooler's."""
        y: Tensor = self.base(x)
        bank: AdapterBank = self.__dict__["bank"]
        for part in bank.here.parts:
            if isinstance(part, _SoloPart):
                if transform := part.adapter.solo.get(self.path):
                    ours, theirs = self._rows(x, part.start, part.end), self._rows(y, part.start, part.end)
                    theirs.copy_(transform(self.base, ours, theirs))
            elif (stack := self.stacks.get(part.bucket)) and any(slot in stack.filled for slot, _, _ in part.runs):
                stack.add(part, self._rows(x, part.start, part.end), self._rows(y, part.start, part.end))
        return y

    def _rows(self, x: Tensor, start: int, end: int) -> Tensor:
        """Those rows of x as [n, t, width]: a view, so that what is written to it is written to x."""
        rows = self.__dict__["bank"].here.rows
        if x.shape[0] != rows or x.dim() not in (2, 3):
            raise RuntimeError(
                f"{self.path} sees a tensor of shape {list(x.shape)} in a pass of {rows} "
                "rows: adapters on this module cannot be told apart by row"
            )
        return x[start:end] if x.dim() == 3 else x[start:end, None]


class _Here(threading.local):
    """The pass that this thread runs."""

    rows = 0
    parts: tuple[_LoraPart | _SoloPart, ...] = ()


class AdapterBank:
    """The adapters of a backbone. Everything but the constructor and `applied` runs on the engine thread.

    Args:
        stacked: one product for the rows of all adapters of a bucket; else one for each adapter's. As suits the device
            by default.
    """

    def __init__(self, backbone: nn.Module, device: torch.device, *, stacked: bool | None = None) -> None:
        self.backbone = backbone
        self.device = device
        self.stacked = device.type != "cpu" if stacked is None else stacked
        self.here = _Here()
        self.attached = 0
        self._wrapped: dict[str, AdaptedLinear] = {}
        self._free: dict[int, list[int]] = {}  # by bucket
        self._slots: dict[int, int] = {}  # by bucket: how many there are

    def attach(self, adapter: Adapter) -> None:
        """Give an adapter a slot and put its weights there."""
        for path in adapter.solo:
            self._wrap(path)
        if adapter.batched:
            adapter.bucket = max(MIN_BUCKET, 1 << (adapter.rank - 1).bit_length())
            adapter.slot = self._take_slot(adapter.bucket)
        self.attached += 1
        try:
            for path, weights in adapter.lora.items():
                self._stack(path, adapter.bucket).put(adapter.slot, weights)
        except BaseException:  # no memory for a stack
            self.detach(adapter)
            raise
        adapter.lora.clear()

    def _take_slot(self, bucket: int) -> int:
        free = self._free.setdefault(bucket, [])
        if not free:
            have = self._slots.get(bucket, 1)  # slot 0 is nobody's
            grown = max(4, have + have // 2)
            for linear in self._wrapped.values():
                if bucket in linear.stacks:
                    linear.stacks[bucket].grow(grown)
            self._slots[bucket] = grown
            free.extend(reversed(range(have, grown)))
        return free.pop()

    def _stack(self, path: str, bucket: int) -> _Stack | _Pairs:
        linear = self._wrap(path)
        if bucket not in linear.stacks:
            linear.stacks[bucket] = _Stack(linear.base, bucket, self._slots[bucket]) if self.stacked else _Pairs()
        return linear.stacks[bucket]

    def detach(self, adapter: Adapter) -> None:
        """Take an adapter's slot back."""
        self.attached -= 1
        if adapter.batched:
            for linear in self._wrapped.values():
                if adapter.bucket in linear.stacks:
                    linear.stacks[adapter.bucket].clear(adapter.slot)
            self._free[adapter.bucket].append(adapter.slot)

    def order(self, adapter: Adapter | None) -> tuple[int, int]:
        """Rows of a pass must be sorted by this: none, then LoRA by bucket and slot, then each of the rest."""
        if adapter is None:
            return (0, 0)
        return (adapter.bucket, adapter.slot) if adapter.batched else (1 << 30, id(adapter))

    @contextmanager
    def applied(self, adapters: Sequence[Adapter | None]) -> Iterator[None]:
        """Apply each row's adapter to the passes that this thread runs inside."""
        self.here.rows = len(adapters)
        self.here.parts = tuple(self._parts(adapters))
        try:
            yield
        finally:
            self.here.parts = ()

    def _parts(self, adapters: Sequence[Adapter | None]) -> Iterator[_LoraPart | _SoloPart]:
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
                yield _LoraPart(start, end, first.bucket, _runs(slots, start), torch.tensor(slots, device=self.device))
            else:
                yield _SoloPart(start, end, first)
            start = end

    def _wrap(self, path: str) -> AdaptedLinear:
        if path not in self._wrapped:
            base = self.backbone.get_submodule(path)
            assert isinstance(base, nn.Linear)  # load_adapter has checked it
            self._wrapped[path] = AdaptedLinear(base, path, self)
            self.backbone.set_submodule(path, self._wrapped[path])
        return self._wrapped[path]


def _runs(slots: Sequence[int], start: int) -> tuple[tuple[int, int, int], ...]:
    """Equal neighbours of `slots`, the first of which is row `start`."""
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
