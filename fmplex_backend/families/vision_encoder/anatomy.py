"""What a vision backbone answers, whatever its architecture: the states of its patches, and a vector for the whole."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fmplex_backend.families.pooling import pool

MOST_EXTRA = 64  # class, distillation and register tokens: DINOv2 has up to 5


class States(NamedTuple):
    """Of a pass."""

    patches: Tensor  # [n, t, h], without class and register tokens
    summary: Tensor | None  # [n, h]: the vector by which the model itself sums a picture up; None where it has none


@dataclass(frozen=True, slots=True)
class Anatomy:
    """How a model's outputs are read. It does not hold the model: training runs a copy with an adapter around it.

    Args:
        extra: class, distillation and register tokens, which come before those of patches.
        pools: whether the model's pooler makes the summary; else it is the class token.
        interpolates: whether its positions must be asked to fit another size than `native`.
        native: side in pixels of the pictures it was trained on, where its config says it.
        patch: side in pixels of a patch.
        stride: pixels from one of its last states to the next, where those are a square grid; else None.
    """

    extra: int
    pools: bool
    interpolates: bool
    native: int | None
    patch: int
    stride: int | None = None

    @classmethod
    def of(cls, model: Any, side: int) -> Anatomy:
        """Found out by a pass of an empty picture of the side that its processor makes."""
        config = model.config
        patch, native = _one(getattr(config, "patch_size", None)), _one(getattr(config, "image_size", None))
        interpolates = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        anatomy = cls(0, False, interpolates, native, patch or 16)
        with torch.inference_mode():
            found = anatomy.run(model, torch.zeros(1, 3, side, side, dtype=model.dtype, device=model.device))
        states, pooled = found.last_hidden_state, getattr(found, "pooler_output", None)
        patches = (side // anatomy.patch) ** 2
        tokens = states.shape[1] if states.dim() == 3 else 0
        extra = tokens - patches if patches <= tokens <= patches + MOST_EXTRA else 0
        pools = pooled is not None and not _has_pretraining_pooler(model)
        count = states.shape[1] - extra if states.dim() == 3 else states.shape[2] * states.shape[3]
        square = 0 < count == isqrt(count) ** 2
        stride = (anatomy.patch if count == patches else side // isqrt(count)) if square else None
        return cls(extra, pools, interpolates, native, anatomy.patch, stride)

    def takes(self, model: Any, side: int) -> bool:
        """Whether the model takes pictures of another side."""
        try:
            with torch.inference_mode():
                self.run(model, torch.zeros(1, 3, side, side, dtype=model.dtype, device=model.device))
        except (AssertionError, RuntimeError, TypeError, ValueError):
            return False
        return True

    def run(self, model: Any, pixels: Tensor) -> Any:
        """[n, 3, h, w], normalised -> the model's own output."""
        foreign = self.interpolates and any(side != self.native for side in pixels.shape[-2:])
        return model(pixel_values=pixels, **({"interpolate_pos_encoding": True} if foreign else {}))

    def states(self, model: Any, pixels: Tensor) -> States:
        """[n, 3, h, w], normalised."""
        found = self.run(model, pixels)
        states: Tensor = found.last_hidden_state
        if states.dim() == 4:  # [n, h, y, x] of a convolutional one
            states = states.flatten(2).mT
        if self.pools:
            return States(states[:, self.extra :], found.pooler_output.flatten(1))
        return States(states[:, self.extra :], states[:, 0] if self.extra else None)

    @property
    def has_summary(self) -> bool:
        """Whether decoders may read `cls`."""
        return self.pools or self.extra > 0


def read(kind: str, states: States) -> Tensor:
    """What a pooling makes of a pass, float32 [n, h]: `cls` is the summary, the others are of the patches alone.

    Of TOKENS it is the states of patches themselves, [n, t, h].
    """
    if kind == "cls":
        assert states.summary is not None  # refused when the task was loaded
        return states.summary.float()
    return pool(kind, states.patches, None)


def _has_pretraining_pooler(model: nn.Module) -> bool:
    """A dense layer on the class token, which ViT has of its pretraining, and mostly without weights."""
    return isinstance(getattr(getattr(model, "pooler", None), "dense", None), nn.Linear)


def _one(size: Any) -> int | None:
    """A config's number, or the first of [height, width]; None without."""
    if isinstance(size, (list, tuple)):
        size = size[0] if size else None
    return int(size) if size else None
