"""Attention of a packed pass: tokens of many sequences in one row, keys and values in blocks of a shared memory.

It stands under transformers' own modules, by their registry of attention functions: they hand over queries, keys and
values of [1, heads, tokens, width] and get [1, tokens, heads, width] back. A pass has groups of queries that run
together: the sequences that compute one token (their contexts padded to the longest of the group), and each longer
chunk by itself. A kernel for variable lengths over blocks, as GPUs have them, can take the place of these groups.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

NAME = "fmplex_paged"
# Arguments of attention functions that change nothing here: dropout is for training, what follows describes the pass.
IGNORED = {
    "dropout",
    "is_causal",
    "position_ids",
    "cache_position",
    "use_cache",
    "output_attentions",
    "output_router_logits",
}
WASTE = 1.3  # contexts of a group's sequences may be so many times longer with their padding


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens of a sequence in a pass: they are the last `new` of `context`."""

    new: int
    context: int
    blocks: Sequence[int]


@dataclass(frozen=True, slots=True)
class Group:
    """n sequences, q queries each, up to c tokens of context."""

    rows: Tensor  # [n * q] places of the queries in the pass
    slots: Tensor  # [n * c] places of the context in memory; any where there is none
    positions: Tensor  # [n, q] of the queries in their sequences
    sequences: int
    context: int

    def mask(self, window: int | None, copies: int) -> Tensor:
        """[n, 1, copies * q, c]: what each query attends to."""
        places = torch.arange(self.context, device=self.rows.device)
        seen = places <= self.positions[..., None]
        if window is not None:
            seen &= places > self.positions[..., None] - window
        return seen.repeat(1, copies, 1)[:, None]


class Plan:
    """Where a pass's tokens are, the same for all layers."""

    def __init__(self, spans: Sequence[Span], block: int, device: torch.device) -> None:
        self.block, self.device = block, device
        starts, place = [], 0
        for span in spans:
            starts.append(place)
            place += span.new
        self.tokens = place
        slots = [self._slots(span) for span in spans]
        self.positions = torch.cat([torch.arange(span.context - span.new, span.context) for span in spans]).to(device)
        own = [each[span.context - span.new : span.context] for each, span in zip(slots, spans, strict=True)]
        self.slots = torch.cat(own).to(device)  # [tokens]: where their keys and values go
        self.groups = [self._group(group, spans, starts, slots) for group in _grouped(spans)]
        self._masks: dict[tuple[int, int | None, int], Tensor] = {}

    def mask(self, number: int, window: int | None, copies: int) -> Tensor:
        """Of a group, made once for all layers."""
        key = (number, window, copies)
        if key not in self._masks:
            self._masks[key] = self.groups[number].mask(window, copies)
        return self._masks[key]

    def _slots(self, span: Span) -> Tensor:
        blocks = torch.tensor(span.blocks[: -(-span.context // self.block)])
        return (blocks[:, None] * self.block + torch.arange(self.block)).flatten()

    def _group(self, group: list[int], spans: Sequence[Span], starts: list[int], slots: list[Tensor]) -> Group:
        context = max(spans[each].context for each in group)
        table = torch.zeros(len(group), context, dtype=torch.int64)
        for place, each in enumerate(group):
            table[place, : spans[each].context] = slots[each][: spans[each].context]
        new = spans[group[0]].new
        rows = torch.tensor(starts)[group][:, None] + torch.arange(new)
        rows = rows.flatten().to(self.device)
        return Group(
            rows, table.flatten().to(self.device), self.positions[rows].view(len(group), new), len(group), context
        )


def _grouped(spans: Sequence[Span]) -> list[list[int]]:
    """Spans of one token together, with those of like contexts; each longer one alone."""
    groups = [[number] for number, span in enumerate(spans) if span.new > 1]
    single = sorted((span.context, number) for number, span in enumerate(spans) if span.new == 1)
    own: list[int] = []
    total = 0
    for context, number in single:
        if own and context * (len(own) + 1) > WASTE * (total + context):
            groups.append(own)
            own, total = [], 0
        own.append(number)
        total += context
    return [*groups, own] if own else groups


class PagedCache:
    """Keys and values of all layers. A layer's tensors are made when it runs first: only then their shapes are known.

    Args:
        slots: tokens there is memory for.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # [slots, heads * width] each

    def put(self, layer: int, places: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write a pass's keys and values ([tokens, heads, width] each); returns the layer's memory."""
        if layer not in self.layers:
            self.layers[layer] = (
                key.new_zeros(self.slots, key.shape[1] * key.shape[2]),
                value.new_zeros(self.slots, value.shape[1] * value.shape[2]),
            )
        keys, values = self.layers[layer]
        keys.index_copy_(0, places, key.flatten(1))
        values.index_copy_(0, places, value.flatten(1))
        return keys, values

    @property
    def token_bytes(self) -> int:
        """What a token takes in all layers that have run."""
        return sum(each[0].nbytes for layer in self.layers.values() for each in layer)


class _CurrentPass(threading.local):
    plan: Plan
    cache: PagedCache | None = None


_current = _CurrentPass()


@contextmanager
def packed(plan: Plan, cache: PagedCache) -> Iterator[None]:
    """The passes that this thread runs inside are of this plan."""
    _current.plan, _current.cache = plan, cache
    try:
        yield
    finally:
        _current.cache = None


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it. query: [1, heads, tokens, width], key and value: [1, kv heads, tokens, width]."""
    cache, plan = _current.cache, _current.plan
    if cache is None or key.shape[2] != plan.tokens:
        raise RuntimeError("attention is asked for outside of a packed pass")
    if odd := sorted(name for name, given in others.items() if given is not None and name not in IGNORED):
        raise NotImplementedError(f"its attention takes {', '.join(odd)}")
    layer: int = module.layer_idx  # type: ignore[assignment]
    kv_heads, width = key.shape[1], value.shape[-1]
    keys, values = cache.put(layer, plan.slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
    queries = query[0].transpose(0, 1)  # [tokens, heads, width]
    result = queries.new_empty(plan.tokens, query.shape[1], width)
    for number, group in enumerate(plan.groups):
        copies = query.shape[1] // kv_heads
        own = queries.index_select(0, group.rows).unflatten(0, (group.sequences, -1))  # [n, q, heads, width]
        # Heads that share keys become further queries of one head: nothing is repeated.
        own = own.unflatten(2, (kv_heads, copies)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # [n, kv heads, copies * q, .]
        key, value = (
            each.index_select(0, group.slots).view(group.sequences, group.context, kv_heads, -1).transpose(1, 2)
            for each in (keys, values)
        )
        found = _group(own, key, value, plan.mask(number, sliding_window, copies), scaling, softcap)
        found = found.unflatten(2, (copies, -1)).permute(0, 3, 1, 2, 4)  # [n, q, kv heads, copies, width]
        result.index_copy_(0, group.rows, found.reshape(-1, query.shape[1], width))
    return result[None], None


def _group(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None, softcap: float | None
) -> Tensor:
    if softcap is None:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1) @ value
