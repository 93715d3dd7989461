"""Encoders that feed the backbone embedding vectors in the place of token ids: of numbers, or by a package's module.

Like tokenising, an encoder runs before the request is queued.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fmplex_backend.decoders.activations import ACTIVATIONS
from fmplex_backend.errors import InvalidRequest, TaskRefused
from fmplex_backend.families.text_encoder.texts import excerpt, read_each
from fmplex_backend.families.text_encoder.tokenizer import MAX_TEXT_BYTES, NO_SPANS, Tokens
from fmplex_backend.plugins import load_weights

LARGEST_ROW = 10.0  # standard deviations from the mean: numbers further away may overflow, nearer ones may not
INITIAL_DEVIATION = 0.05  # of an encoder's first vectors: about that of word embeddings


class LoadedEncoder(Protocol):
    """What the runtime asks of a task's encoder."""

    takes: str  # the input it reads

    def encode(self, value: Any, *, spans: bool) -> list[list[Tokens]]:
        """The input tensor -> per item its windows; raises InvalidRequest."""


class CustomEncoder(nn.Module):
    """Base class of packages' encoders: rows -> sequences of vectors that the backbone takes like embedded tokens.

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


class ProjectionLayers(CustomEncoder):
    """Numbers -> `tokens` vectors, through linear layers; the numbers are standardised as the training set was."""

    mean: Tensor  # [f]
    deviation: Tensor  # [f]

    def __init__(self, features: int, tokens: int, hidden: Sequence[int], activation: str, width: int) -> None:
        super().__init__({}, width)
        widths = [features, *hidden]
        self.tokens = tokens
        inner = [
            layer
            for before, after in pairwise(widths)
            for layer in (nn.Linear(before, after), ACTIVATIONS[activation]())
        ]
        last = nn.Linear(widths[-1], tokens * width)
        nn.init.normal_(last.weight, std=INITIAL_DEVIATION / widths[-1] ** 0.5)
        nn.init.normal_(last.bias, std=INITIAL_DEVIATION)
        self.layers = nn.Sequential(*inner, last)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))

    @property
    def features(self) -> int:
        return len(self.mean)

    def observe(self, x: Tensor) -> None:
        """Store each column's mean and standard deviation; a constant column is not scaled."""
        deviation = x.std(dim=0, unbiased=False)
        self.mean.copy_(x.mean(dim=0))
        self.deviation.copy_(torch.where(deviation > 0, deviation, torch.ones_like(deviation)))

    def forward(self, x: Tensor) -> Tensor:
        """[n, f] -> [n, tokens, width]."""
        values: Tensor = self.layers((x - self.mean) / self.deviation)
        return values.reshape(len(x), self.tokens, -1)


def load_projection(make: Callable[[], ProjectionLayers], directory: Path, weights: str) -> ProjectionLayers:
    """The layers with the tensors of a version's file; raises TaskRefused."""
    try:
        with torch.device("meta"):  # sizes of a task.json are compared with the file before they take memory
            module = make()
    except (OverflowError, RuntimeError, TypeError) as error:
        raise TaskRefused(
            directory / "task.json",
            "encoder",
            f"no tensor is so large: {error}",
            "Say features, tokens and hidden as they were in training",
        ) from None
    file = directory / weights
    load_weights(module, file, "encoder")
    if not bool((module.deviation > 0).all()):
        raise TaskRefused(file, "deviation", "it holds numbers that are not above 0", "Train the encoder again")
    steps = torch.tensor([[-LARGEST_ROW], [0.0], [LARGEST_ROW]])
    with torch.inference_mode():
        vectors = module(module.mean + steps * module.deviation)
    if not bool(torch.isfinite(vectors).all()):
        raise TaskRefused(
            file,
            "layers",
            f"rows of numbers within {LARGEST_ROW:g} standard deviations overflow in it",
            "Train the encoder again",
        )
    return module


class VectorEncoder:
    """A CustomEncoder as the runtime calls it.

    Args:
        module: with its weights.
        max_tokens: the backbone's limit.
        placeholder: the token id at positions that vectors fill.
    """

    def __init__(self, module: CustomEncoder, max_tokens: int, placeholder: int) -> None:
        self.module, self.max_tokens, self.placeholder = module.eval(), max_tokens, placeholder
        self.takes: str = module.takes

    def encode(self, value: Any, *, spans: bool) -> list[list[Tokens]]:
        """The rows' vectors, computed on the CPU; raises InvalidRequest."""
        parts = read_each(value, partial(excerpt, most=MAX_TEXT_BYTES)) if self.takes == "TEXT" else []
        rows = [part.text for part in parts] if parts else value
        with torch.inference_mode():
            try:
                vectors = self.module(self.module.read(rows)).float().numpy()  # [n, t, width]
            except ValueError as error:
                raise InvalidRequest(f"{self.takes} holds {error}") from None
        if not 1 <= vectors.shape[1] <= self.max_tokens:
            raise InvalidRequest(
                f"the encoder made {vectors.shape[1]} tokens, the backbone takes 1 to {self.max_tokens}"
            )
        ids = [self.placeholder] * vectors.shape[1]
        cut = [part.is_cut for part in parts] or [False] * len(vectors)
        read = [part.text for part in parts] or [row.tobytes() for row in value]
        return [
            [Tokens(ids, [], NO_SPANS, cut[item], vectors[item], (self, read[item]))] for item in range(len(vectors))
        ]
