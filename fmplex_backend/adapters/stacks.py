"""One module's LoRA weights, by slot, and what they add to its outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmplex_backend.adapters.parts import LoraPart, Product
from fmplex_backend.adapters.peft import LoraWeights

try:
    from fmplex_backend.adapters.lora_kernels import add_lora
except ImportError:  # torch has no Triton on this platform: batched products do the same
    add_lora = None  # type: ignore[assignment]

FEW = 32  # tokens: of so many, on a CPU, calls take longer than products


class Stack:
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

    def add(self, part: LoraPart, x: Tensor, y: Tensor) -> None:
        """x: [n, t, in], y: [n, t, out] of the part's rows; y changes."""
        if part.captured and add_lora is not None:
            add_lora(x, self.a, self.b, part.slots, y)
            return
        low = torch.bmm(x, self.a[part.slots].mT)  # [n, t, r]
        y.baddbmm_(low, self.b[part.slots])

    def serves(self, part: LoraPart) -> bool:
        return part.captured or any(slot in self.filled for slot, _, _ in part.runs)


@dataclass(frozen=True, slots=True)
class _Planned:
    """A product with its weights.

    Few tokens of a language model are multiplied in float32, by weights that lie as the product reads them: in bfloat16
    a product of 16 tokens takes twice as long, for what is done around it.
    """

    tokens: slice | None  # see `Product`
    foreign: Tensor | None
    a: Tensor  # [ranks, in]; of few tokens [in, ranks]
    b: Tensor  # [ranks, out]
    few: bool

    def add(self, x: Tensor, y: Tensor) -> None:
        """x: [tokens of the pass, in], y: [., out]; y changes."""
        if self.tokens is not None:
            x, y = x[self.tokens], y[self.tokens]
        low = x.float() @ self.a if self.few else nn.functional.linear(x, self.a)  # [tokens, ranks]
        if self.foreign is not None:
            low.masked_fill_(self.foreign, 0)  # whatever it is; B is finite, as the loader has checked
        if low.dtype == y.dtype:
            y.addmm_(low, self.b)
        else:
            y.add_(low @ self.b)


class Pairs:
    """The same where nothing is padded: each slot's weights as they are, and joined those of runs that go together."""

    def __init__(self) -> None:
        self.filled: dict[int, LoraWeights] = {}
        self._ranks: dict[int, int] = {}
        # By whether tokens are few, the slots that were joined last: steps repeat.
        self._joined: dict[bool, tuple[tuple[int, ...], Tensor, Tensor]] = {}

    def grow(self, slots: int) -> None:
        """There is always room."""

    def put(self, slot: int, weights: LoraWeights) -> None:
        self.filled[slot], self._ranks[slot] = weights, weights.rank
        self._joined.clear()

    def clear(self, slot: int) -> None:
        if self.filled.pop(slot, None):
            del self._ranks[slot]
            self._joined.clear()

    def serves(self, part: LoraPart) -> bool:
        return any(slot in self._ranks for slot, _, _ in part.runs)

    def products(self, part: LoraPart, tokens: int, of: int, width: int, dtype: torch.dtype) -> list[Product]:
        """See `LoraPart.products`."""
        return part.products(tuple([self._ranks.get(slot, 0) for slot, _, _ in part.runs]), tokens, of, width, dtype)

    def add(self, part: LoraPart, x: Tensor, y: Tensor, *, tokens: int, packed: bool) -> None:
        """x: [rows * tokens, in], y: [rows * tokens, out] of the whole pass; y changes.

        Beside a language model's next tokens what is done around the products counts: there is little of it.
        """
        planned = part.planned.get(self)
        if planned is None:
            planned = self._planned(part, x, y, tokens=tokens, packed=packed)
            if packed:  # its modules see all tokens in one way
                part.planned[self] = planned
        for each in planned:
            each.add(x, y)

    def _planned(self, part: LoraPart, x: Tensor, y: Tensor, *, tokens: int, packed: bool) -> list[_Planned]:
        found = []
        for product in self.products(part, tokens, len(x), x.shape[1] + y.shape[1], x.dtype):
            own = product.tokens
            count = len(x) if own is None else own.stop - own.start
            few = packed and count <= FEW and x.device.type == "cpu"
            found.append(_Planned(own, product.foreign, *self._weights(product.slots, few=few), few))
        return found

    def _weights(self, slots: tuple[int, ...], *, few: bool) -> tuple[Tensor, Tensor]:
        """A and B of `_Planned`: those of several slots one under the other."""
        own = [self.filled[slot] for slot in slots]
        if len(own) == 1 and not few:
            return own[0].a, own[0].b
        joined = self._joined.get(few)
        if joined is None or joined[0] != slots:
            a, b = torch.cat([each.a for each in own]), torch.cat([each.b for each in own])
            if few:
                a, b = a.float().T.contiguous(), b.float()
            joined = self._joined[few] = slots, a, b  # as a whole: other threads may run passes
        return joined[1], joined[2]
