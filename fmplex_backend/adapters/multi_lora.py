"""Many adapters in one pass over the backbone, picked row by row.

Every Linear that any adapter targets is wrapped once. LoRA weights of similar rank (a bucket: the next power of two)
lie stacked, slot 0 all zeros, so a pass gathers its rows' slots and adds x @ a[slots].T @ b[slots] with two batched
products per module, whatever the mix (Punica and S-LoRA do the same with kernels of their own). On a CPU, and for a
language model on any device, nothing is padded: a slot's rows, a run, are multiplied alone, or short runs together:
with the A's of all of them one under the other, what a row gets of others' A's left out, and then with their B's.
Rows are sorted so that each bucket, each slot in it, and each adapter that cannot be stacked, is one slice of the
batch; rows with no adapter pay nothing.

Threads may run passes side by side, each over rows of its own; nothing is attached meanwhile.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fmplex_backend.adapters.peft import Adapter, LoraWeights
from fmplex_backend.adapters.saved_modules import ReplacedRows

try:
    from fmplex_backend.adapters.lora_kernels import add_lora
except ImportError:  # torch has no Triton on this platform: batched products do the same
    add_lora = None  # type: ignore[assignment]

MIN_BUCKET = 4
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
class _LoraPart:
    """Rows [start, end) of the pass take their adapters from one bucket's stacks."""

    start: int
    end: int
    bucket: int
    runs: tuple[tuple[int, int, int], ...]  # (slot, first row, row after the last), in order; none while captured
    slots: Tensor  # [end - start]
    captured: bool = False  # into a CUDA graph, whose rows have other slots at each replay
    _planned: dict[Hashable, list[Product]] = field(default_factory=dict)  # by what modules have in common

    def products(self, ranks: tuple[int, ...], tokens: int, of: int, width: int, dtype: torch.dtype) -> list[Product]:
        """How a module multiplies the runs, whose weights have these ranks there; 0: none.

        Args:
            tokens: of a row.
            of: tokens of all rows of the pass.
            width: of the module's inputs and outputs together.
        """
        key = (ranks, tokens, width, dtype)
        found = self._planned.get(key)
        if found is None:
            on_cpu = self.slots.device.type == "cpu"
            overhead = OVERHEAD.get(dtype, OVERHEAD[torch.bfloat16]) if on_cpu else OVERHEAD_ON_DEVICE
            joined = self._joined(ranks, overhead / (tokens * width))
            found = self._planned[key] = [self._product(own, ranks, tokens, of) for own in joined]
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
class _SoloPart:
    """Rows [start, end) of the pass belong to one adapter that is applied on its own."""

    start: int
    end: int
    adapter: Adapter


class _Stack:
    """One module's LoRA weights of one bucket, by slot: for devices that take all rows in one product."""

    def __init__(self, linear: nn.Linear, rank: int, slots: int) -> None:
        self.filled: set[int] = set()
        weight = linear.weight  # read once: who keeps it in another order has to make it
        self.a = weight.new_zeros(slots, rank, linear.in_features)  # [slots, r, in]
        self.b = weight.new_zeros(slots, rank, linear.out_features)  # [slots, r, out]

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
        if slot in self.filled:
            self.a[slot].zero_()
            self.b[slot].zero_()
            self.filled.discard(slot)

    def add(self, part: _LoraPart, x: Tensor, y: Tensor) -> None:
        """x: [n, t, in], y: [n, t, out] of the part's rows; y changes."""
        if part.captured and add_lora is not None:
            add_lora(x, self.a, self.b, part.slots, y)
            return
        low = torch.bmm(x, self.a[part.slots].mT)  # [n, t, r]
        y.baddbmm_(low, self.b[part.slots])

    def serves(self, part: _LoraPart) -> bool:
        return part.captured or any(slot in self.filled for slot, _, _ in part.runs)


class _Pairs:
    """The same where nothing is padded: each slot's weights as they are, and joined those of runs that go together."""

    def __init__(self) -> None:
        self.filled: dict[int, LoraWeights] = {}
        self._ranks: dict[int, int] = {}
        self._joined: tuple[tuple[int, ...], Tensor, Tensor] | None = None  # the last ones: steps repeat

    def grow(self, slots: int) -> None:
        """There is always room."""

    def put(self, slot: int, weights: LoraWeights) -> None:
        self.filled[slot], self._ranks[slot] = weights, weights.rank
        self._joined = None

    def clear(self, slot: int) -> None:
        if self.filled.pop(slot, None):
            del self._ranks[slot]
            self._joined = None

    def serves(self, part: _LoraPart) -> bool:
        return any(slot in self._ranks for slot, _, _ in part.runs)

    def products(self, part: _LoraPart, tokens: int, of: int, width: int, dtype: torch.dtype) -> list[Product]:
        """See `_LoraPart.products`."""
        return part.products(tuple([self._ranks.get(slot, 0) for slot, _, _ in part.runs]), tokens, of, width, dtype)

    def add(self, part: _LoraPart, tokens: int, x: Tensor, y: Tensor) -> None:
        """x: [rows * tokens, in], y: [rows * tokens, out] of the whole pass; y changes.

        Beside a language model's next tokens what is done around the products counts: there is little of it.
        """
        for product in self.products(part, tokens, len(x), x.shape[1] + y.shape[1], x.dtype):
            a, b = self._weights(product.slots)
            own = product.tokens
            low = nn.functional.linear(x if own is None else x[own], a)  # [tokens, ranks]
            if product.foreign is not None:
                low.masked_fill_(product.foreign, 0)  # whatever it is; B is finite, as the loader has checked
            (y if own is None else y[own]).addmm_(low, b)

    def _weights(self, slots: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """[ranks, in] and [ranks, out]: those of several slots one under the other."""
        own = [self.filled[slot] for slot in slots]
        if len(own) == 1:
            return own[0].a, own[0].b
        joined = self._joined
        if joined is None or joined[0] != slots:
            joined = slots, torch.cat([each.a for each in own]), torch.cat([each.b for each in own])
            self._joined = joined  # as a whole: other threads may run passes
        return joined[1], joined[2]


class AdaptedLinear(nn.Module):
    """A shared Linear, plus the adapters of the rows in this thread's pass."""

    def __init__(self, base: nn.Linear, path: str, bank: AdapterBank) -> None:
        super().__init__()
        self.base = base
        self.path = path
        self.stacks: dict[int, _Stack | _Pairs] = {}  # by bucket
        object.__setattr__(self, "bank", bank)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
        """The shared layer alone."""
        copied: nn.Linear = copy.deepcopy(self.base, memo)
        return copied

    @property
    def weight(self) -> Tensor:
        """The shared weight: some models read its dtype."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """x: [rows, t, in] -> [rows, t, out]; in a pooler [rows, in] -> [rows, out]; packed [1, rows, in]."""
        y: Tensor = self.base(x)
        bank: AdapterBank = self.__dict__["bank"]
        for part in bank.current.parts:
            if isinstance(part, _SoloPart):
                if transform := part.adapter.solo.get(self.path):
                    inputs, outputs = self._rows(x, part), self._rows(y, part, to_write=True)
                    outputs.copy_(transform(self.base, inputs, outputs))
            elif (stack := self.stacks.get(part.bucket)) and stack.serves(part):
                if isinstance(stack, _Pairs):
                    tokens = self._tokens_of_a_row(x)
                    stack.add(part, tokens, x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1]))
                else:
                    stack.add(part, self._rows(x, part), self._rows(y, part, to_write=True))
        return y

    def products(self, tokens: int) -> list[tuple[Product, list[LoraWeights]]]:
        """What this thread's pass multiplies here, in order, where its rows have so many tokens each: LoRA alone."""
        bank: AdapterBank = self.__dict__["bank"]
        found, width = [], self.base.in_features + self.base.out_features
        for part in bank.current.parts:
            if isinstance(part, _LoraPart):
                stack = self.stacks.get(part.bucket)
                if isinstance(stack, _Pairs) and stack.serves(part):
                    dtype = next(iter(stack.filled.values())).a.dtype
                    for each in stack.products(part, tokens, bank.current.rows * tokens, width, dtype):
                        found.append((each, [stack.filled[slot] for slot in each.slots]))
        return found

    def _rows(self, x: Tensor, part: _LoraPart | _SoloPart, *, to_write: bool = False) -> Tensor:
        """The part's rows of x, [n, t, width]; to be written to they are a view, so that x changes with them."""
        return self._by_row(x, to_write=to_write)[part.start : part.end]

    def _by_row(self, x: Tensor, *, to_write: bool) -> Tensor:
        """[rows, t, width]."""
        shape = (-1, self._tokens_of_a_row(x), x.shape[-1])
        return x.view(shape) if to_write else x.reshape(shape)

    def _tokens_of_a_row(self, x: Tensor) -> int:
        """t, where x is [rows * t, width] but for its shape; raises RuntimeError where it is not."""
        bank: AdapterBank = self.__dict__["bank"]
        rows, packed, shape = bank.current.rows, bank.current.packed, x.shape
        if packed and len(shape) == 3 and shape[0] == 1 and shape[1] == rows:
            return 1
        if not packed and len(shape) > 1 and shape[0] % rows == 0 and (bank.folds or shape[0] == rows):
            if len(shape) == 2:
                return shape[0] // rows
            if bank.folds or len(shape) == 3:
                return x.numel() // (rows * shape[-1])
        raise RuntimeError(
            f"{self.path} sees a tensor of shape {list(shape)} in a pass of {rows} "
            "rows: adapters on this module cannot be told apart by row"
        )


class _CurrentPass(threading.local):
    """The rows of the pass that this thread runs, and their adapters."""

    rows = 0
    packed = False  # a row is one token, and all of them are one row of the model's
    parts: tuple[_LoraPart | _SoloPart, ...] = ()


class AdapterBank:
    """The adapters of a backbone. Everything but the constructor and `applied` runs on the engine thread.

    Args:
        stacked: whether the rows of all adapters of a bucket share one batched product; else each adapter's rows are
            multiplied alone. By default everywhere but on CPUs.
        folds: whether a module may see several parts of a row one after the other ([rows * parts, t, in], as windows of
            a picture), or more dims between the first and the last. The family answers for it that it sees them so.
    """

    def __init__(
        self, backbone: nn.Module, device: torch.device, *, stacked: bool | None = None, folds: bool = False
    ) -> None:
        self.backbone = backbone
        self.folds = folds
        self.device = device
        self.stacked = device.type != "cpu" if stacked is None else stacked
        self.current = _CurrentPass()
        self.attached = 0
        self.generation = 0  # grows when modules or stacks are replaced: CUDA graphs of before read the former ones
        self._wrapped: dict[str, AdaptedLinear] = {}
        self._free: dict[int, list[int]] = {}  # by bucket
        self._slots: dict[int, int] = {}  # by bucket: how many there are
        self._hooked: set[str] = set()  # paths of modules that some adapter brings whole

    def attach(self, adapter: Adapter) -> None:
        """Give an adapter a slot and put its weights there; one that does not fit keeps nothing on the device."""
        for _ in self.attaching(adapter):
            pass

    def attaching(self, adapter: Adapter) -> Iterator[None]:
        """The same, module by module. It is not to be used before the end; closed before it leaves no trace."""
        for path in adapter.solo:
            self._wrap(path)
        for path in adapter.modules:
            self._hook(path)
        try:
            if adapter.batched:
                adapter.bucket = max(MIN_BUCKET, 1 << (adapter.rank - 1).bit_length())
                adapter.slot = self._take_slot(adapter.bucket)
            self.attached += 1
            try:
                for path, weights in adapter.lora.items():
                    self._stack(path, adapter.bucket).put(adapter.slot, weights)
                    yield
            except BaseException:  # e.g. the device has no memory left for a stack; or it was closed
                self.detach(adapter)
                self._drop_empty(adapter.bucket)
                raise
        finally:
            adapter.lora.clear()

    def _take_slot(self, bucket: int) -> int:
        free = self._free.setdefault(bucket, [])
        if not free:
            have = self._slots.get(bucket, 1)  # slot 0 stays zero: it stands for no adapter
            grown = max(4, have + have // 2)
            self.generation += 1  # first, as there may be memory for some of the larger stacks only
            for linear in self._wrapped.values():
                if bucket in linear.stacks:
                    linear.stacks[bucket].grow(grown)
            self._slots[bucket] = grown
            free.extend(reversed(range(have, grown)))
        return free.pop()

    def _stack(self, path: str, bucket: int) -> _Stack | _Pairs:
        linear = self._wrap(path)
        if bucket not in linear.stacks:
            self.generation += 1
            linear.stacks[bucket] = _Stack(linear.base, bucket, self._slots[bucket]) if self.stacked else _Pairs()
        return linear.stacks[bucket]

    def detach(self, adapter: Adapter) -> None:
        """Clear an adapter's slot and let another one have it."""
        self.attached -= 1
        if adapter.batched:
            for linear in self._wrapped.values():
                if adapter.bucket in linear.stacks:
                    linear.stacks[adapter.bucket].clear(adapter.slot)
            self._free[adapter.bucket].append(adapter.slot)
            adapter.slot = 0

    def drop_unused(self) -> None:
        """Drop the stacks of buckets none of whose slots is taken: they may have grown large."""
        for bucket in [each for each, slots in self._slots.items() if len(self._free[each]) == slots - 1]:
            self._drop_empty(bucket)
            del self._free[bucket], self._slots[bucket]

    def _drop_empty(self, bucket: int) -> None:
        """Drop stacks of a bucket that hold nothing: whoever needs them next makes them again."""
        for linear in self._wrapped.values():
            if bucket in linear.stacks and not linear.stacks[bucket].filled:
                self.generation += 1
                del linear.stacks[bucket]

    def order(self, adapter: Adapter | None) -> tuple[int, int]:
        """The sort key of a pass's rows: no adapter, then LoRA by bucket and slot, then each of the other adapters.

        Raises RuntimeError for one that is not attached: its rows would come out as the bare backbone's.
        """
        if adapter is None:
            return (0, 0)
        if adapter.batched and not adapter.slot:
            raise RuntimeError("the adapter's weights are not in memory")
        return (adapter.bucket, adapter.slot) if adapter.batched else (1 << 30, id(adapter))

    @property
    def applies_none(self) -> bool:
        """Whether no row of this thread's pass has an adapter."""
        return not self.current.parts

    def products_of_pass(self, tokens: int) -> dict[str, list[tuple[Product, list[LoraWeights]]]] | None:
        """By module, what this thread's pass adds to it (see `Product`), where its rows have so many tokens each.

        None where that is not all that the pass applies.
        """
        if self.stacked or any(isinstance(part, _SoloPart) for part in self.current.parts):
            return None
        by_path = ((path, linear.products(tokens)) for path, linear in self._wrapped.items())
        return {path: products for path, products in by_path if products}

    @contextmanager
    def applied(self, adapters: Sequence[Adapter | None], *, packed: bool = False) -> Iterator[None]:
        """Apply each row's adapter to the passes that this thread runs inside.

        Args:
            packed: rows are tokens of many sequences: the model sees [1, rows], and so each of its modules.
        """
        with self._in_pass(len(adapters), self._parts(adapters), packed=packed):
            yield

    @contextmanager
    def applied_by_slots(self, slots: Mapping[int, Tensor], rows: int) -> Iterator[None]:
        """Apply LoRA to a pass that is captured: by bucket, the slots of all its rows, 0 for rows without.

        Replays read what is in the tensors at that time.
        """
        parts = (_LoraPart(0, rows, bucket, (), own, captured=True) for bucket, own in slots.items())
        with self._in_pass(rows, parts):
            yield

    @contextmanager
    def _in_pass(self, rows: int, parts: Iterable[_LoraPart | _SoloPart], *, packed: bool = False) -> Iterator[None]:
        self.current.rows, self.current.packed, self.current.parts = rows, packed, tuple(parts)
        try:
            yield
        finally:
            self.current.parts = ()

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

    def _hook(self, path: str) -> None:
        """Let adapters replace a module's rows. The hook stays: without such adapters in a pass it costs nothing."""
        if path not in self._hooked:
            self._hooked.add(path)
            self.generation += 1
            self.backbone.get_submodule(path).register_forward_hook(
                ReplacedRows(path, self._replaced), with_kwargs=True
            )

    def _replaced(self, path: str) -> tuple[int, list[tuple[int, int, nn.Module]]]:
        """The rows of this thread's pass, and its parts that have a module of their own."""
        solo = [part for part in self.current.parts if isinstance(part, _SoloPart) and path in part.adapter.modules]
        return self.current.rows, [(part.start, part.end, part.adapter.modules[path]) for part in solo]

    def _wrap(self, path: str) -> AdaptedLinear:
        if path not in self._wrapped:
            base = self.backbone.get_submodule(path)
            assert isinstance(base, nn.Linear)  # load_adapter has checked it
            self.generation += 1
            self._wrapped[path] = AdaptedLinear(base, path, self)
            self.backbone.set_submodule(path, self._wrapped[path])
        return self._wrapped[path]


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
