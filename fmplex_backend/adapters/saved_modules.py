"""Modules that an adapter brings whole (PEFT's `modules_to_save`): they take the backbone's place on the task's rows.

The backbone's own module still runs on all rows of a pass, and a hook behind it replaces those of such adapters. That
is exact for modules which put rows one after the other along the first dim, and for no others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

PROBED_ROWS = (1, 3)


class ReplacedRows:
    """A forward hook: the rows of adapters that have this module take what their own makes of the same inputs.

    Args:
        path: the module's, for messages.
        current: the rows of this thread's pass that have a module of their own here: how many rows there are, and
            (first row, row after the last, the module).
    """

    def __init__(self, path: str, current: Callable[[str], tuple[int, list[tuple[int, int, nn.Module]]]]) -> None:
        self.path, self.current = path, current

    def __deepcopy__(self, memo: dict[int, Any]) -> ReplacedRows:
        return self  # whoever copies a model means its weights, not the backbone's adapters

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        """As torch calls it; the output [rows, ...] with some rows replaced, None where it stays as it is."""
        rows, parts = self.current(self.path)
        if not parts:
            return None
        if not isinstance(output, Tensor) or output.shape[0] != rows:
            raise RuntimeError(f"{self.path} makes no tensor of {rows} rows: a module of one's own cannot replace it")
        replaced = output.clone()  # the module may have returned its input
        for start, end, own in parts:
            given = [_rows(each, rows, start, end) for each in args]
            named = {name: _rows(each, rows, start, end) for name, each in kwargs.items()}
            replaced[start:end] = own(*given, **named)
        return replaced


def _rows(value: Any, rows: int, start: int, end: int) -> Any:
    """Rows [start, end) of an input that has one for each; others are shared by all."""
    by_row = isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == rows
    return value[start:end] if by_row else value


def plain_copy(module: nn.Module) -> nn.Module:
    """A copy over the same parameters and buffers, without what is put in for the adapters of tasks."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    found: nn.Module = copy.deepcopy(module, shared)
    for each in found.modules():
        each._forward_hooks.clear()
        each._forward_hooks_with_kwargs.clear()
    return found


def own_modules(
    path: str, module: nn.Module, tensors: Mapping[str, Tensor], by_row: Collection[str]
) -> dict[str, nn.Module]:
    """A module of the backbone with other tensors (by the names of its state_dict), and those inside of it, by path.

    Modules inside are called on their own too, e.g. for the embeddings of some rows.
    """
    own = plain_copy(module)
    own.load_state_dict(dict(tensors), assign=True)
    own.requires_grad_(False)
    inside = {f"{path}.{name}": each for name, each in own.named_modules() if name}
    return {path: own} | {name: each for name, each in inside.items() if name in by_row}


def modules_by_row(model: nn.Module, run: Callable[[int], object]) -> frozenset[str]:
    """The paths of modules whose output is a tensor with a row of the pass at each place of its first dim.

    Args:
        run: a pass of so many rows.
    """
    shapes: list[dict[str, int | None]] = []
    for rows in PROBED_ROWS:
        seen: dict[str, int | None] = {}
        handles = [each.register_forward_hook(_first_dim(path, seen)) for path, each in model.named_modules() if path]
        try:
            with torch.inference_mode():
                run(rows)
        finally:
            for handle in handles:
                handle.remove()
        shapes.append(seen)
    return frozenset(
        path
        for path in shapes[0]
        if all(seen.get(path) == rows for rows, seen in zip(PROBED_ROWS, shapes, strict=True))
    )


def _first_dim(path: str, seen: dict[str, int | None]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, given: Any, output: Any) -> None:
        size = output.shape[0] if isinstance(output, Tensor) and output.dim() > 1 else None
        seen[path] = size if seen.get(path, size) == size else None  # called several times, in different ways

    return hook
