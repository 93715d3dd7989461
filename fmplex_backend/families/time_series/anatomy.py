"""How a time-series model of transformers is run, and what it answers, whatever its architecture.

A model whose channels do not see each other takes any number of them: each channel is a row of the backbone. One that
mixes them takes exactly those it was trained with, as one row.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmplex_backend.families.pooling import pool
from fmplex_backend.families.time_series.architectures import PATCHES, Architecture, Ran


class States(NamedTuple):
    """Of a pass of n rows of c channels."""

    tokens: Tensor  # [n, c, t, d]: the class token, where there is one, and the patches
    seen: Tensor  # [n, c, p] bool: patches that hold an observed value
    location: Tensor  # [n, c]: the level that the model takes away from each channel
    scale: Tensor  # [n, c]: and what it divides it by


@dataclass(frozen=True, slots=True)
class Anatomy:
    """It does not hold the model: training runs a copy with an adapter around it.

    Args:
        context: steps that the model takes.
        channels: of a row; 1 where channels do not see each other.
        separate: whether they do not.
        extra: class tokens, which come before those of patches.
    """

    architecture: Architecture
    context: int
    channels: int
    separate: bool
    patch: int
    stride: int
    patches: int
    extra: int
    width: int

    @classmethod
    def of(cls, model: Any, architecture: Architecture) -> Anatomy:
        """By the model's config, and a pass of an empty series."""
        config = model.config
        context, patch, stride = architecture.sizes(config)
        patches = (max(context, patch) - patch) // stride + 1
        separate = architecture.separates(config)
        channels = 1 if separate else int(config.num_input_channels)
        anatomy = cls(architecture, context, channels, separate, patch, stride, patches, 0, 0)
        zeros = torch.zeros(1, context, channels, device=model.device)
        with torch.inference_mode():
            found = anatomy.run(model, zeros, torch.ones_like(zeros, dtype=torch.bool)).tokens
        if found.dim() != 4 or found.shape[1] != channels or found.shape[2] - patches not in (0, 1):
            raise ValueError(f"it makes states {list(found.shape)} of {channels} channels of {patches} patches")
        return cls(
            architecture,
            context,
            channels,
            separate,
            patch,
            stride,
            patches,
            int(found.shape[2]) - patches,
            int(found.shape[3]),
        )

    @property
    def tokens(self) -> int:
        """Of a row that fills the context."""
        return self.tokens_of(self.context)

    def tokens_of(self, steps: int) -> int:
        """Of a row of so many steps."""
        return self.channels * (self._patches_of(steps) + self.extra)

    def steps_of(self, tokens: int) -> int:
        """That rows of up to so many tokens are given as."""
        patches = tokens // self.channels - self.extra
        return self.context if patches == self.patches else self.patch + self.stride * (patches - 1)

    def _patches_of(self, steps: int) -> int:
        if not self.architecture.takes_shorter:
            return self.patches
        return min(self.patches, 1 + max(0, -(-(steps - self.patch) // self.stride)))

    def run(self, model: Any, values: Tensor, observed: Tensor) -> Ran:
        """[n, context, channels] float32 and bool -> what the model makes of them."""
        return self.architecture.run(model, values, observed)

    def states(self, model: Any, values: Tensor, observed: Tensor) -> States:
        """The same, or the last steps of it as `steps_of` says -> what decoders read."""
        found = self.run(model, values, observed)
        start = (observed.shape[1] - self.patch) % self.stride  # steps before the first patch
        cut = observed[:, start:].unfold(1, self.patch, self.stride)  # [n, p, c, patch]
        seen = (cut.all(dim=-1) if self.architecture.whole_patches else cut.any(dim=-1)).mT
        if not self.architecture.takes_shorter:
            return States(found.tokens, seen, found.location, found.scale)
        tokens = self._filled(found.tokens, self.extra, self.patches + self.extra)
        return States(tokens, self._filled(seen, 0, self.patches), found.location, found.scale)

    @staticmethod
    def _filled(part: Tensor, at: int, size: int) -> Tensor:
        """[n, c, t, ...] with zeros from `at` on, so that t is `size`; a recording takes any t."""
        n, c, t, *rest = part.shape
        return torch.cat([part[:, :, :at], part.new_zeros(n, c, size - t, *rest), part[:, :, at:]], dim=2)

    def width_of(self, reads: str) -> int:
        """Of what a decoder reads of a channel: its pooled vector, or the vectors of all its tokens."""
        return (self.patches + self.extra) * self.width if reads == PATCHES else self.width

    def read(self, kind: str, states: States) -> Tensor:
        """What a decoder reads, float32.

        [n, d] of a pooling over patches that hold something, and over channels. Of PATCHES [n, c, t * d + 2]: the
        vectors of all tokens, then location and scale.
        """
        if kind == PATCHES:
            aside = torch.stack([states.location, states.scale], dim=-1)
            return torch.cat([states.tokens.flatten(2), aside], dim=-1).float()
        if kind == "cls":
            return states.tokens[:, :, 0].mean(dim=1).float()
        rows, channels = states.seen.shape[:2]
        patches = states.tokens[:, :, self.extra :].flatten(0, 1)
        pooled = pool(kind, patches, states.seen.flatten(0, 1)).view(rows, channels, -1)
        return pooled.amax(dim=1) if kind == "max" else pooled.mean(dim=1)


def without_head(forecaster: Any, architecture: Architecture) -> Any:
    """What of a whole model is the backbone."""
    if not architecture.forecasts:
        return forecaster
    if not architecture.parts:
        return getattr(forecaster, architecture.backbone)
    for part in architecture.parts:
        delattr(forecaster, part)
    if architecture.embeddings:
        forecaster._input_embed_layer = architecture.embeddings
    return forecaster


def import_needed(architecture: Architecture) -> None:
    """Import what has an architecture's class; raises ImportError that says what to install."""
    if not architecture.package:
        return
    try:
        class_of(architecture, architecture.forecaster)
    except ImportError as error:
        raise ImportError(f"{error}: {architecture.install}") from error


def read_config(architecture: Architecture, directory: Path) -> Any:
    """A model's config, as its class takes it."""
    from transformers import AutoConfig

    kind = class_of(architecture, architecture.config) if architecture.config else AutoConfig
    return kind.from_pretrained(directory)


def class_of(architecture: Architecture, name: str) -> Any:
    """A class of the architecture, by its name."""
    module = importlib.import_module(architecture.package or "transformers")
    return getattr(module, name)
