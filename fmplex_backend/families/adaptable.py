"""Which Linear modules of a backbone see its rows one after the other, so that each row has its own adapter.

Swin's see windows, those of a picture one after the other, PatchTST's see channels; others see a table that all rows
share. What a module does is found out, not assumed: a wrong vector would not look like one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fmplex_backend.adapters.peft import Adapter
from fmplex_backend.errors import TaskRefused

ROUNDING = 0.2  # of the distance of two rows' inputs; DINOv2-small in bfloat16: 0.05


def not_adaptable(model: Any, run: Callable[[Tensor], Any], shape: tuple[int, ...]) -> set[str]:
    """Paths of Linear modules whose inputs for two rows are not those for each, one after the other.

    Those that are not called at all, since another module reads their weights, are among them.

    Args:
        run: a pass of rows [n, *shape].
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, *shape, generator=generator).to(model.device, model.dtype)
    both = _seen(model, run, rows)
    alone = [_seen(model, run, row[None]) for row in rows]
    fit = {
        path
        for path, inputs in both.items()
        if all(path in each for each in alone)
        and _same(inputs.flatten(0, -2), torch.cat([each[path].flatten(0, -2) for each in alone]))
    }
    return {path for path, _ in _linears(model)} - fit


def check_adaptable(adapter: Adapter, file: Path, odd: set[str], rows: str) -> None:
    """Raise TaskRefused where an adapter is on one of the modules `odd`.

    Args:
        rows: what the backbone's rows are, for the message.
    """
    if found := sorted({*adapter.lora, *adapter.solo} & odd):
        raise TaskRefused(
            file,
            "target_modules",
            f"{found[0]} sees no rows of {rows}, so that adapters on it cannot be told apart",
            "Train without that target module",
        )


def _seen(model: Any, run: Callable[[Tensor], Any], rows: Tensor) -> dict[str, Tensor]:
    """The input of each Linear in a pass, by its path."""
    seen: dict[str, Tensor] = {}

    def watch(path: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen[path] = given[0]

        return hook

    handles = [each.register_forward_pre_hook(watch(path)) for path, each in _linears(model)]
    try:
        with torch.inference_mode():
            run(rows)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(path, each) for path, each in model.named_modules() if isinstance(each, nn.Linear)]


def _same(both: Tensor, alone: Tensor) -> bool:
    """Whether a module's inputs are the same but for rounding: they differ by far less than the two rows' do.

    Single elements say nothing: bfloat16 on AMX rounds otherwise for two rows than for one, layer upon layer.

    Args:
        both: of a pass of two rows, [2 t, in].
        alone: of a pass of each, one after the other, [2 t, in].
    """
    if both.shape != alone.shape:
        return False
    both, alone = both.float(), alone.float()
    first, second = alone.chunk(2)
    return bool((both - alone).norm() <= ROUNDING * (first - second).norm())
