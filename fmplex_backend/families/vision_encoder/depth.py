"""MAP [h, w]: a real number for every pixel, such as a depth or a height."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from pydantic.dataclasses import dataclass

from fmplex_backend.decoders.decoder import Array, Outputs
from fmplex_backend.decoders.results import Result
from fmplex_backend.decoders.rows import Rows, places
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.vision_encoder.maps import MapDecoder, enlarged
from fmplex_backend.families.vision_encoder.masks import Values, read_maps, resized, values_of
from fmplex_backend.families.vision_encoder.results import ValueMap
from fmplex_backend.interface import TensorSpec
from fmplex_backend.section import CHECKED

if TYPE_CHECKING:
    from torch import Tensor

    from fmplex_backend.decoders.figures import Evaluation

MAP = TensorSpec("MAP", "TYPE_FP32", (-1, -1))


@dataclass(config=CHECKED, frozen=True)
class DepthMap(MapDecoder):
    """A number for every pixel, by a head on the vector of each patch that is fitted by mean squared error.

    Args:
        size: height and width of every map, whatever the picture's own, or one number for both.
        scale: what whole numbers in the rows' depths are multiplied by, e.g. 0.001 for millimetres; 0 is unknown there.
    """

    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = field(default=1.0, kw_only=True)

    kind: Literal["depth"] = field(default="depth", kw_only=True, repr=False)
    gives = (MAP,)
    output = MAP.name
    label_column = "depth"
    label_folder = "depths"

    @property
    def width(self) -> int:
        return 1

    def answer(self, patches: Array) -> dict[str, npt.NDArray[Any]]:
        return {MAP.name: np.concatenate([block[..., 0] for block in enlarged(patches, self.size)])}

    @classmethod
    def result(cls, labels: Sequence[str], item: Any, outputs: Outputs, truncated: bool) -> Result:
        return ValueMap(outputs["MAP"], truncated)

    # -- fitting

    def remarks(self, rows: Rows) -> list[str]:
        unknown = [place for place, depth in enumerate(self._depths(rows)) if np.isnan(depth).all()]
        if len(unknown) == len(rows):
            raise TaskProblem(f"{rows.source}: no pixel has a known value. Give rows where some have")
        if not unknown:
            return []
        return [f"{rows.source}, {places(unknown)}: no pixel has a known value. Leave out what says nothing"]

    def targets(self, rows: Rows) -> list[Values]:
        """[h, w] of the map's size."""
        return [resized(depth, self.size) for depth in self._depths(rows)]

    def _depths(self, rows: Rows) -> Iterator[Values]:
        return read_maps(rows, lambda label: values_of(label, self.scale))

    def loss(self, values: Tensor, targets: Tensor, class_weights: Tensor | None) -> Tensor:
        from fmplex_backend.families.vision_encoder import dense

        if values.dim() == 3:
            values, targets = self.apart(values, targets)
        return dense.squared_error(values, targets)

    def apart(self, vectors: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        from fmplex_backend.families.vision_encoder import dense

        return vectors.flatten(0, 1), dense.means(targets, vectors.shape[1]).flatten(0, 1)

    def figures(self, rows: Rows, outputs: Sequence[Outputs]) -> Evaluation:
        """Over all pixels whose value is known, in its own unit; `mean_rmse` is of saying the rows' mean everywhere."""
        from fmplex_backend.decoders.figures import DIGITS, Evaluation

        # Sums over pixels: those of all rows together may be more than fit into memory.
        pixels, absolute, squared, mean, scattered = 0, 0.0, 0.0, 0.0, 0.0
        for depth, each in zip(self._depths(rows), outputs, strict=True):
            known = ~np.isnan(depth)
            value = depth[known].astype(np.float64)
            error = resized(each["MAP"], depth.shape)[known] - value
            absolute, squared = absolute + float(np.abs(error).sum()), squared + float(np.square(error).sum())
            if value.size:  # joined by their means: a sum of squares would lose the digits of what is far from 0
                away = float(value.mean()) - mean
                scattered += float(np.square(value - value.mean()).sum())
                scattered += away * away * pixels * value.size / (pixels + value.size)
                mean += away * value.size / (pixels + value.size)
                pixels += value.size
        if not pixels:
            raise TaskProblem(f"{rows.source}: no pixel has a known value to compare with. Give rows where some have")
        figures = {
            "rmse": math.sqrt(squared / pixels),
            "mae": absolute / pixels,
            "mean_rmse": math.sqrt(scattered / pixels),
        }
        return Evaluation({name: round(each, DIGITS) for name, each in figures.items()}, len(rows))
