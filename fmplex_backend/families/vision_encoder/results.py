"""Typed results of tasks that answer with a map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fmplex_backend.decoders.results import Result
from fmplex_backend.families.vision_encoder.masks import resized
from fmplex_backend.families.vision_encoder.pictures import Array, picture_of

SHOWN = 4  # labels in a line
COLOURS = 20  # of matplotlib's tab20
NO_LIMIT = 1 << 30  # pixels of a picture that is drawn


@dataclass(frozen=True, slots=True, eq=False)
class LabelMap(Result):
    """The number of each pixel's label, [h, w] over the whole picture.

    `scores` are the labels in the order of their numbers, with the mean probability over the picture.
    """

    map: npt.NDArray[np.uint8]
    scores: Mapping[str, float]
    truncated: bool = False

    @property
    def shares(self) -> dict[str, float]:
        """The part of the pixels that each label has, the largest first; those without a pixel are left out."""
        counts = np.bincount(self.map.ravel(), minlength=len(self.scores)) / self.map.size
        ranked = sorted(zip(self.scores, counts.tolist(), strict=False), key=lambda each: -each[1])
        return {label: share for label, share in ranked if share}

    def mask(self, label: str) -> npt.NDArray[np.bool_]:
        """Where a label is, [h, w]; raises KeyError for one that the task does not know."""
        if label not in self.scores:
            raise KeyError(label)
        return np.asarray(self.map == list(self.scores).index(label))

    def resized(self, height: int, width: int) -> npt.NDArray[np.uint8]:
        """The map in a picture's own size, by the nearest pixel."""
        return resized(self.map, (height, width))

    def shown(self) -> str:
        shares = list(self.shares.items())
        more = ", ..." if len(shares) > SHOWN else ""
        return ", ".join(f"{label} {share:.1%}" for label, share in shares[:SHOWN]) + more

    def draw(self, axes: Any, item: Any, after: Any = None) -> bool:
        """The picture with the map over it, and a colour for each label that occurs."""
        from matplotlib import colormaps

        pixels = _pixels(item)
        colours = colormaps["tab20"]
        axes.imshow(pixels)
        shown = self.resized(*pixels.shape[:2]) % COLOURS
        axes.imshow(shown, alpha=0.5, cmap=colours, vmin=0, vmax=COLOURS - 1, interpolation="nearest")
        names = list(self.scores)
        for label in self.shares:
            axes.plot([], [], "s", color=colours(names.index(label) % COLOURS), label=label)
        axes.set_axis_off()
        return True


@dataclass(frozen=True, slots=True, eq=False)
class ValueMap(Result):
    """A number for each pixel, [h, w] over the whole picture."""

    map: npt.NDArray[np.float32]
    truncated: bool = False

    def resized(self, height: int, width: int) -> npt.NDArray[np.float32]:
        """The map in a picture's own size, by the nearest pixel."""
        return resized(self.map, (height, width))

    def shown(self) -> str:
        height, width = self.map.shape
        low, mean, high = self.map.min(), self.map.mean(), self.map.max()
        return f"{width} x {height} values: {low:.4g} to {high:.4g}, mean {mean:.4g}"

    def draw(self, axes: Any, item: Any, after: Any = None) -> bool:
        """The map in the picture's size, with a scale."""
        height, width, _ = _pixels(item).shape
        axes.figure.colorbar(axes.imshow(self.resized(height, width)), ax=axes)
        axes.set_axis_off()
        return True


def _pixels(item: Any) -> Array:
    return picture_of(item).pixels(NO_LIMIT)
