"""What the kinds of decoders that answer with a map have in common: a head on each patch, and a grid of fixed size.

A map is of the whole picture, which the backbone sees resized to a square: nothing is cropped.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import field, replace
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from fmplex_backend.decoders.decoder import TOKENS, Array, Encoded, LoadedDecoder
from fmplex_backend.decoders.head import HeadDecoder
from fmplex_backend.families.vision_encoder.masks import SUFFIXES
from fmplex_backend.section import CHECKED

if TYPE_CHECKING:
    from torch import Tensor

    from fmplex_backend.decoders.trainable import TrainableHead

MOST_SIDE = 2048  # pixels of a map
BLOCK = 1 << 22  # numbers that enlarging a map takes at a time


def _both(size: Any) -> Any:
    """One number stands for height and width."""
    return (size, size) if isinstance(size, int) else size


_Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]
Size = Annotated[tuple[_Side, _Side], BeforeValidator(_both)]


@dataclass(config=CHECKED, frozen=True)
class MapDecoder(HeadDecoder):
    """Base of the kinds that answer with a map [h, w] of each picture.

    Args:
        size: height and width of every map, whatever the picture's own, or one number for both. What the head says of
            patches is enlarged to it, bilinearly.
    """

    size: Size = field(default=(224, 224), kw_only=True)

    label_files = SUFFIXES
    output: ClassVar[str]  # the backbone's name of the map's output; clients see MAP

    @property
    def reads(self) -> str:
        return TOKENS

    @property
    @abstractmethod
    def width(self) -> int: ...

    @abstractmethod
    def answer(self, patches: Array) -> dict[str, npt.NDArray[Any]]:
        """The output tensors of one picture, of the head's values [rows, columns, width]."""

    def load(self, directory: Path, hidden: int) -> LoadedDecoder:
        head = self.load_head(directory, hidden, self.width)

        def decode(encoded: Encoded) -> dict[str, npt.NDArray[Any]]:
            answers = [self.answer(head(tokens).reshape(*grid_of(len(tokens)), -1)) for tokens in encoded.tokens]
            return {name: np.stack([each[name] for each in answers]) for name in answers[0]}

        return LoadedDecoder(self.reads, self.sizes(directory, hidden), decode)

    def sizes(self, directory: Path, hidden: int | None) -> dict[str, int | None]:
        return {self.output: self.size[1]}

    # -- fitting

    def trainable(self, hidden: int, class_weights: Tensor | None = None) -> TrainableHead:
        return replace(super().trainable(hidden, class_weights), apart=self.apart)

    @abstractmethod
    def apart(self, vectors: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of patches [n, t, h] and pixels' targets [n, ...] -> [n * t, h] and one target for each patch."""

    def stack(self, targets: Sequence[Any]) -> Tensor:
        import torch

        return torch.from_numpy(np.stack(targets))


def grid_of(tokens: int) -> tuple[int, int]:
    """Rows and columns of a square's patches."""
    side = isqrt(tokens)
    return side, side


def enlarged(patches: Array, size: tuple[int, int]) -> Iterator[Array]:
    """[rows, columns, c] -> [*size, c] in blocks of rows: torch's bilinear interpolation, corners not aligned."""
    height, width = size
    left, right, part = _between(patches.shape[1], width)
    wide = patches[:, left] * (1 - part)[:, None] + patches[:, right] * part[:, None]  # [rows, width, c]
    upper, lower, part = _between(patches.shape[0], height)
    step = max(1, BLOCK // (width * patches.shape[2]))
    for start in range(0, height, step):
        own = slice(start, start + step)
        weight = part[own, None, None]
        yield wide[upper[own]] * (1 - weight) + wide[lower[own]] * weight


def _between(old: int, new: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Array]:
    """For each of `new` pixels the two of `old` that it lies between, and how near to the second."""
    places = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    first = np.minimum(places.astype(np.int64), old - 1)
    return first, np.minimum(first + 1, old - 1), (places - first).astype(np.float32)
