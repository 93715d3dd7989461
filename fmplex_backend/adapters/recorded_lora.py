"""LoRA inside a recorded forward: what a pass adds to its modules' outputs, as tensors that the recording takes.

A recording has no constants of a task's: which adapters a pass applies, and their weights, are inputs of that one call.
The operations are those of `multi_lora` on a CPU, in the same order.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn

from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.adapters.parts import Product
from fmplex_backend.adapters.peft import LoraWeights

PER_MODULE = 4  # tensors: a, b, masks and plan, see `add_products`


def add_products(x: Tensor, y: Tensor, a: Tensor, b: Tensor, masks: Tensor, plan: Tensor) -> Tensor:
    """y, to which the products of a pass's runs are added in place.

    Args:
        x: [rows, t, in], and y: [rows, t, out].
        a: [ranks, in], and b: [ranks, out], of all products one under the other.
        masks: what tokens get of other slots' A's, of all products one after the other, as one row.
        plan: [products, 5], on the CPU: first token, token after the last, first rank, rank after the last, where its
            mask begins or -1. Without products y stays as it is.
    """
    if plan.numel() == 0:
        return y
    inputs, outputs = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    bounds: list[list[int]] = plan.tolist()
    for each in bounds:
        low = torch.nn.functional.linear(inputs[each[0] : each[1]], a[each[2] : each[3]])  # [tokens, ranks]
        if each[4] >= 0:
            low.masked_fill_(masks[each[4] : each[4] + low.numel()].view(low.shape), 0)
        outputs[each[0] : each[1]].addmm_(low, b[each[2] : each[3]])
    return y


class RecordedLora:
    """Makes the tensors that a recording takes for a pass.

    Args:
        paths: of the modules whose outputs the recording adds to, in its order.
        unread: modules whose output nobody reads: what is added there is left out.
    """

    def __init__(self, bank: AdapterBank, paths: Sequence[str], unread: Collection[str] = ()) -> None:
        self.bank = bank
        self._unread = tuple(f"{each}." for each in unread)
        self._places = {path: PER_MODULE * number for number, path in enumerate(paths)}
        self._nothing = nothing_to_add(len(paths), next(bank.backbone.parameters()))
        self._last = _LastJoined()

    def of_pass(self, rows: int, tokens: int) -> list[Tensor] | None:
        """What this thread's pass of so many rows of so many tokens adds; None where a recording cannot add it."""
        by_path = self.bank.products_of_pass(tokens)
        if by_path is None:
            return None
        others = by_path.keys() - self._places.keys()
        if not all(path.startswith(self._unread) for path in others):
            return None
        given = list(self._nothing)
        plans: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}  # what modules with the same products share
        for path, products in by_path.items():
            place = self._places.get(path)
            if place is None:
                continue
            key = tuple([id(product) for product, _ in products])
            if key not in plans:
                plans[key] = _plan(products, rows * tokens)
            a, b = self._joined(path, [each for _, own in products for each in own])
            given[place : place + PER_MODULE] = (a, b, *plans[key])
        return given

    def _joined(self, path: str, own: list[LoraWeights]) -> tuple[Tensor, Tensor]:
        """[ranks, in] and [ranks, out]: those of several slots one under the other."""
        if len(own) == 1:
            return own[0].a, own[0].b
        last = self._last.by_path.get(path)
        if last is None or len(last[0]) != len(own) or any(map(is_not, last[0], own)):
            last = own, torch.cat([each.a for each in own]), torch.cat([each.b for each in own])
            self._last.by_path[path] = last
        return last[1], last[2]


class _LastJoined(threading.local):
    """By module, the weights that this thread's last pass joined: passes repeat. They are compared by identity."""

    def __init__(self) -> None:
        self.by_path: dict[str, tuple[list[LoraWeights], Tensor, Tensor]] = {}


def nothing_to_add(modules: int, like: Tensor) -> list[Tensor]:
    """The tensors of a pass without adapters."""
    weights = like.new_empty(0)
    return [weights, weights, torch.empty(0, dtype=torch.bool), torch.empty(0, dtype=torch.int64)] * modules


def _plan(products: Sequence[tuple[Product, list[LoraWeights]]], tokens: int) -> tuple[Tensor, Tensor]:
    """`masks` and `plan` of a pass of so many tokens in all, see `add_products`."""
    bounds, masks = [], []
    rank = masked = 0
    for product, own in products:
        first, end = (0, tokens) if product.tokens is None else (product.tokens.start, product.tokens.stop)
        last = rank + sum(each.rank for each in own)
        bounds.append([first, end, rank, last, -1 if product.foreign is None else masked])
        rank = last
        if product.foreign is not None:
            masks.append(product.foreign.view(-1))
            masked += product.foreign.numel()
    plan = torch.tensor(bounds)
    if len(masks) == 1:
        return masks[0], plan
    return torch.cat(masks) if masks else torch.empty(0, dtype=torch.bool), plan


@contextmanager
def added(
    lora: Sequence[Tensor], modules: Sequence[nn.Module], add: Callable[..., Tensor] = add_products
) -> Iterator[None]:
    """Add `lora` to what modules make, in all threads: while a model is recorded, and what that is compared with."""
    of_each = [lora[start : start + PER_MODULE] for start in range(0, len(lora), PER_MODULE)]
    handles = [
        module.register_forward_hook(_adding(own, add)) for module, own in zip(modules, of_each, strict=bool(of_each))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(own: Sequence[Tensor], add: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return add(given[0], output, *own)

    return hook


def adaptable_modules(model: nn.Module, run: Callable[[], object], shape: Sequence[int]) -> dict[str, nn.Linear]:
    """The Linears, by path, that take a tensor [rows, t, in] whenever they are called.

    Args:
        run: a pass of so many rows and tokens as `shape` says.
    """
    paths: dict[nn.Linear, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear):
            paths.setdefault(module, []).append(path)
    seen: dict[nn.Module, bool] = {}

    def look(module: nn.Module, given: tuple[Any, ...]) -> None:
        by_row = len(given) == 1 and given[0].dim() == 3 and given[0].shape[:2] == tuple(shape)
        seen[module] = by_row and seen.get(module, True)

    handles = [module.register_forward_pre_hook(look) for module in paths]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    # an adapter takes the place of one path alone
    return {own[0]: module for module, own in paths.items() if seen.get(module) and len(own) == 1}


def sample_lora(modules: Sequence[nn.Linear], rows: int, tokens: int) -> list[Tensor]:
    """LoRA that shows whether a recording adds it: every other module has some, for the first row and for all."""
    lora = nothing_to_add(len(modules), torch.empty(0))
    plan = torch.tensor([[0, tokens, 0, 2, -1], [0, rows * tokens, 1, 4, 0]])
    masks = torch.arange(rows * tokens * 3) % 4 == 0
    for number, module in enumerate(modules[::2]):
        own = next(chain(module.parameters(), module.buffers()))  # weights in another order would have to be made
        sizes = module.in_features, module.out_features
        pair = (torch.linspace(-0.5, 0.5, 4 * size).view(4, size).to(own) for size in sizes)
        place = 2 * number * PER_MODULE
        lora[place : place + PER_MODULE] = (*pair, masks, plan)
    return lora


def operations_without_lora(graph: torch.Graph) -> str:
    """What a recording does, as text, without what adds LoRA, and without the places in its source."""
    graph = graph.copy()
    adding = [node for node in graph.nodes() if _calls(node) == add_products.__name__]
    for call in adding:
        _, _, output, *_ = call.inputs()  # the function, then its arguments
        call.output().replaceAllUsesWith(output)
        call.destroy()
    if adding:
        *others, lora = graph.inputs()
        for use in lora.uses():
            use.user.destroy()
        graph.eraseInput(len(others))
    torch._C._jit_pass_dce(graph)
    _, _, operations = str(torch._C._jit_pass_canonicalize(graph, False)).partition("):\n")  # behind the inputs
    return re.sub(r" # \S+:\d+:\d+$", "", operations, flags=re.MULTILINE)


def _calls(node: torch.Node) -> str:
    """The name of the function that it calls, if any."""
    if node.kind() != "prim::CallFunction":
        return ""
    function: torch.Node = next(iter(node.inputs())).node()
    return function.s("name")
