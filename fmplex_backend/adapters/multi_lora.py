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
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fmplex_backend.adapters.parts import LoraPart, Product, SoloPart, parts_of
from fmplex_backend.adapters.peft import Adapter, LoraWeights
from fmplex_backend.adapters.saved_modules import ReplacedRows
from fmplex_backend.adapters.stacks import Pairs, Stack

MIN_BUCKET = 4


class AdaptedLinear(nn.Module):
    """A shared Linear, plus the adapters of the rows in this thread's pass."""

    def __init__(self, base: nn.Linear, path: str, bank: AdapterBank) -> None:
        super().__init__()
        self.base = base
        self.path = path
        self.stacks: dict[int, Stack | Pairs] = {}  # by bucket
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
            if isinstance(part, SoloPart):
                if transform := part.adapter.solo.get(self.path):
                    inputs, outputs = self._rows(x, part), self._rows(y, part, to_write=True)
                    outputs.copy_(transform(self.base, inputs, outputs))
            elif (stack := self.stacks.get(part.bucket)) and stack.serves(part):
                if isinstance(stack, Pairs):
                    tokens, packed = self._tokens_of_a_row(x), bank.current.packed
                    rows = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
                    stack.add(part, *rows, tokens=tokens, packed=packed)
                else:
                    stack.add(part, self._rows(x, part), self._rows(y, part, to_write=True))
        return y

    def products(self, tokens: int) -> list[tuple[Product, list[LoraWeights]]]:
        """What this thread's pass multiplies here, in order, where its rows have so many tokens each: LoRA alone."""
        bank: AdapterBank = self.__dict__["bank"]
        found, width = [], self.base.in_features + self.base.out_features
        for part in bank.current.parts:
            if isinstance(part, LoraPart):
                stack = self.stacks.get(part.bucket)
                if isinstance(stack, Pairs) and stack.serves(part):
                    dtype = next(iter(stack.filled.values())).a.dtype
                    for each in stack.products(part, tokens, bank.current.rows * tokens, width, dtype):
                        found.append((each, [stack.filled[slot] for slot in each.slots]))
        return found

    def _rows(self, x: Tensor, part: LoraPart | SoloPart, *, to_write: bool = False) -> Tensor:
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
    parts: tuple[LoraPart | SoloPart, ...] = ()


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
        self._last_step: tuple[list[Adapter | None], tuple[LoraPart | SoloPart, ...]] | None = None

    def attach(self, adapter: Adapter) -> None:
        """Give an adapter a slot and put its weights there; one that does not fit keeps nothing on the device."""
        for _ in self.attaching(adapter):
            pass

    def attaching(self, adapter: Adapter) -> Iterator[None]:
        """The same, module by module. It is not to be used before the end; closed before it leaves no trace."""
        self._last_step = None
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

    def _stack(self, path: str, bucket: int) -> Stack | Pairs:
        linear = self._wrap(path)
        if bucket not in linear.stacks:
            self.generation += 1
            linear.stacks[bucket] = Stack(linear.base, bucket, self._slots[bucket]) if self.stacked else Pairs()
        return linear.stacks[bucket]

    def detach(self, adapter: Adapter) -> None:
        """Clear an adapter's slot and let another one have it."""
        self.attached -= 1
        self._last_step = None
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
        if self.stacked or any(isinstance(part, SoloPart) for part in self.current.parts):
            return None
        by_path = ((path, linear.products(tokens)) for path, linear in self._wrapped.items())
        return {path: products for path, products in by_path if products}

    @contextmanager
    def applied(self, adapters: Sequence[Adapter | None], *, packed: bool = False) -> Iterator[None]:
        """Apply each row's adapter to the passes that this thread runs inside.

        Args:
            packed: rows are tokens of many sequences: the model sees [1, rows], and so each of its modules.
        """
        parts = self._parts_of_step(adapters) if packed else tuple(parts_of(adapters, self.device))
        with self._in_pass(len(adapters), parts, packed=packed):
            yield

    @contextmanager
    def applied_by_slots(self, slots: Mapping[int, Tensor], rows: int) -> Iterator[None]:
        """Apply LoRA to a pass that is captured: by bucket, the slots of all its rows, 0 for rows without.

        Replays read what is in the tensors at that time.
        """
        parts = (LoraPart(0, rows, bucket, (), own, captured=True) for bucket, own in slots.items())
        with self._in_pass(rows, parts):
            yield

    @contextmanager
    def _in_pass(self, rows: int, parts: Iterable[LoraPart | SoloPart], *, packed: bool = False) -> Iterator[None]:
        self.current.rows, self.current.packed, self.current.parts = rows, packed, tuple(parts)
        try:
            yield
        finally:
            self.current.parts = ()

    def _parts_of_step(self, adapters: Sequence[Adapter | None]) -> tuple[LoraPart | SoloPart, ...]:
        """Those of the last pass of a language model again where its tokens had the same adapters: mostly they have."""
        last = self._last_step
        if last is None or last[0] != adapters:
            last = self._last_step = [*adapters], tuple(parts_of(adapters, self.device))
        return last[1]

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
        solo = [part for part in self.current.parts if isinstance(part, SoloPart) and path in part.adapter.modules]
        return self.current.rows, [(part.start, part.end, part.adapter.modules[path]) for part in solo]

    def _wrap(self, path: str) -> AdaptedLinear:
        if path not in self._wrapped:
            base = self.backbone.get_submodule(path)
            assert isinstance(base, nn.Linear)  # load_adapter has checked it
            self.generation += 1
            self._wrapped[path] = AdaptedLinear(base, path, self)
            self.backbone.set_submodule(path, self._wrapped[path])
        return self._wrapped[path]
