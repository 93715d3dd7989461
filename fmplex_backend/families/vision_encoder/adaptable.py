"""Which Linear modules of a vision backbone see its pictures one after the other, so that each has its own adapter.

Swin's see windows, those of a picture one after the other; others see a table that all pictures share. What a module
does is found out, not assumed: a wrong vector would not look like one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fmplex_backend.families.vision_encoder.anatomy import Anatomy


def not_adaptable(model: Any, anatomy: Anatomy, side: int) -> set[str]:
    """Paths of Linear modules whose inputs for two pictures are not those for each, one after the other.

    Those that are not called at all, since another module reads their weights, are among them.
    """
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(2, 3, side, side, generator=generator).to(model.device, model.dtype)
    both = _seen(model, anatomy, pictures)
    alone = [_seen(model, anatomy, picture[None]) for picture in pictures]
    fit = {
        path
        for path, inputs in both.items()
        if all(path in each for each in alone)
        and _same(inputs.flatten(0, -2), torch.cat([each[path].flatten(0, -2) for each in alone]))
    }
    return {path for path, _ in _linears(model)} - fit


def _seen(model: Any, anatomy: Anatomy, pixels: Tensor) -> dict[str, Tensor]:
    """The input of each Linear in a pass, by its path."""
    seen: dict[str, Tensor] = {}

    def watch(path: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen[path] = given[0]

        return hook

    handles = [each.register_forward_pre_hook(watch(path)) for path, each in _linears(model)]
    try:
        with torch.inference_mode():
            anatomy.run(model, pixels)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(path, each) for path, each in model.named_modules() if isinstance(each, nn.Linear)]


def _same(one: Tensor, other: Tensor) -> bool:
    """But for rounding: two pictures differ by far more."""
    if one.shape != other.shape:
        return False
    return bool(torch.allclose(one.float(), other.float(), rtol=0.05, atol=0.05 * float(other.float().std())))
