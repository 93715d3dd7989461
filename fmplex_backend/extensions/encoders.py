"""Encoders that give the backbone vectors in the place of tokens: made of numbers, or of what a package reads.

Like tokenising, an encoder runs before the request is queued. A package registers one in its pyproject.toml:

    [project.entry-points."fmplex.encoders"]
    sensors = "my_package:Sensors"

and a task.json says {"kind": "plugin", "name": "sensors", "options": {...}}.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fmplex_backend import config as cfg
from fmplex_backend.errors import InvalidRequest, TaskRefused
from fmplex_backend.extensions.plugins import load_weights, make_plugin
from fmplex_backend.extensions.text import NO_SPANS, TextTokenizer, TextTokens, Tokens, texts_of

GROUP = "fmplex.encoders"
NEAR = 0.05  # the spread of an encoder's first vectors: about that of word embeddings
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "gelu": nn.GELU, "relu": nn.ReLU}


class Encoder(Protocol):
    """What the runtime asks of a task's encoder."""

    takes: str  # the input it reads
    features: int | None  # how many numbers a row has, where that is fixed

    def encode(self, value: Any, *, spans: bool) -> list[list[Tokens]]:
        """The input tensor -> per item its windows; raises InvalidRequest."""


class CustomEncoder(nn.Module):
    """What a package's encoder inherits: rows -> sequences of vectors that the backbone takes like embedded tokens.

    `takes` is FEATURES (numbers, FP32 [n, f]) or TEXT. A subclass takes `options` (those of task.json) and `width`,
    that of the backbone's token embeddings.
    """

    takes: ClassVar[Literal["FEATURES", "TEXT"]] = "FEATURES"

    def __init__(self, options: Mapping[str, Any], width: int) -> None:
        super().__init__()

    @property
    def features(self) -> int | None:
        """How many numbers a row has, where that is fixed."""
        return None

    def read(self, rows: Any) -> Tensor:
        """Rows as clients send them, numbers [n, f] or a list of texts -> what `forward` takes; raises ValueError."""
        numbers = torch.as_tensor(np.array(rows, dtype=np.float32))
        if numbers.dim() != 2 or not len(numbers):
            raise ValueError(f"a shape of {list(numbers.shape)}, rows of numbers have [n, {self.features or 'f'}]")
        if self.features is not None and numbers.shape[1] != self.features:
            raise ValueError(f"rows of {numbers.shape[1]} numbers, not of {self.features}")
        if not bool(torch.isfinite(numbers).all()):
            raise ValueError("NaN or infinite numbers")
        return numbers

    def observe(self, x: Tensor) -> None:
        """All rows of the training set, once, before it is fitted."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, ...] -> [n, t, width]."""
        raise NotImplementedError


class Projection(CustomEncoder):
    """Numbers -> `tokens` vectors, through linear layers; the numbers are standardised as the training set was."""

    mean: Tensor  # [f]
    deviation: Tensor  # [f]

    def __init__(self, options: Mapping[str, Any], width: int) -> None:
        super().__init__(options, width)
        section = cfg.Projection.model_validate({"kind": "projection", **options})
        widths = [section.features, *section.hidden]
        self.tokens = section.tokens
        inner = [
            layer
            for before, after in pairwise(widths)
            for layer in (nn.Linear(before, after), ACTIVATIONS[section.activation]())
        ]
        last = nn.Linear(widths[-1], section.tokens * width)
        nn.init.normal_(last.weight, std=NEAR / widths[-1] ** 0.5)
        nn.init.normal_(last.bias, std=NEAR)
        self.layers = nn.Sequential(*inner, last)
        self.register_buffer("mean", torch.zeros(section.features))
        self.register_buffer("deviation", torch.ones(section.features))

    @property
    def features(self) -> int:
        """How many numbers a row has."""
        return len(self.mean)

    def observe(self, x: Tensor) -> None:
        """Take their means and deviations; a number that never changes is left as it is."""
        deviation = x.std(dim=0, unbiased=False)
        self.mean.copy_(x.mean(dim=0))
        self.deviation.copy_(torch.where(deviation > 0, deviation, torch.ones_like(deviation)))

    def forward(self, x: Tensor) -> Tensor:
        """[n, f] -> [n, tokens, width]."""
        values: Tensor = self.layers((x - self.mean) / self.deviation)
        return values.reshape(len(x), self.tokens, -1)


class VectorEncoder:
    """A CustomEncoder as the runtime calls it.

    Args:
        module: with its weights.
        most: tokens that the backbone takes.
        standing_in: the id that stands where a vector is.
    """

    def __init__(self, module: CustomEncoder, most: int, standing_in: int) -> None:
        self.module, self.most, self.standing_in = module.eval(), most, standing_in
        self.takes: str = module.takes
        self.features = module.features

    def encode(self, value: Any, *, spans: bool) -> list[list[Tokens]]:
        """Through the module, on the CPU."""
        rows = texts_of(value) if self.takes == "TEXT" else value
        with torch.inference_mode():
            try:
                vectors = self.module(self.module.read(rows)).float().numpy()  # [n, t, width]
            except ValueError as error:
                raise InvalidRequest(f"{self.takes} holds {error}") from None
        if not 1 <= vectors.shape[1] <= self.most:
            raise InvalidRequest(f"the encoder made {vectors.shape[1]} tokens, the backbone takes 1 to {self.most}")
        ids = [self.standing_in] * vectors.shape[1]
        return [[Tokens(ids, [], NO_SPANS, False, vectors[item])] for item in range(len(vectors))]


def make_encoder(section: cfg.Projection | cfg.PluginEncoder, file: Path | str, width: int) -> CustomEncoder:
    """The module a section names, with weights of its own making; raises TaskRefused."""
    if isinstance(section, cfg.Projection):
        return Projection(section.model_dump(exclude={"kind", "weights"}), width)
    module = make_plugin(GROUP, CustomEncoder, section, file, width)
    if module.takes not in ("FEATURES", "TEXT"):
        raise TaskRefused(
            file, "encoder.name", f"{section.name!r} takes {module.takes!r}", "Set `takes` to FEATURES or TEXT"
        )
    return module


def load_encoder(
    section: cfg.Encoder, directory: Path, tokenizer: TextTokenizer, width: int, standing_in: int
) -> Encoder:
    """The encoder of a task.json's section; raises TaskRefused."""
    file = directory / "task.json"
    if isinstance(section, cfg.TextEncoder):
        if section.max_length and section.max_length > tokenizer.max_length:
            raise _too_long(file, "encoder.max_length", section.max_length, tokenizer.max_length)
        return TextTokens(tokenizer, section)
    if isinstance(section, cfg.Projection) and section.tokens > tokenizer.max_length:
        raise _too_long(file, "encoder.tokens", section.tokens, tokenizer.max_length)
    module = make_encoder(section, file, width)
    load_weights(module, directory / section.weights, "encoder")
    return VectorEncoder(module, tokenizer.max_length, standing_in)


def _too_long(file: Path, field: str, wanted: int, most: int) -> TaskRefused:
    return TaskRefused(file, field, f"{wanted} is more than the backbone's {most} tokens", "Lower it")
