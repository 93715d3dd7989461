"""MAP [h, w], the number of each pixel's label, and SCORES [C], how much of the picture each label covers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from fmplex_backend.decoders.classification import weights_of_classes
from fmplex_backend.decoders.decoder import Array, Labelled, Outputs
from fmplex_backend.decoders.head import softmax
from fmplex_backend.decoders.results import Result, scores_by_label
from fmplex_backend.decoders.rows import Rows, named
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.vision_encoder.maps import MapDecoder, enlarged
from fmplex_backend.families.vision_encoder.masks import (
    UNKNOWN,
    Numbers,
    numbers_of,
    read_maps,
    resized,
)
from fmplex_backend.families.vision_encoder.results import LabelMap
from fmplex_backend.interface import SCORES, TensorSpec
from fmplex_backend.section import CHECKED

if TYPE_CHECKING:
    from torch import Tensor

    from fmplex_backend.decoders.figures import Evaluation

LABEL_MAP = TensorSpec("LABEL_MAP", "TYPE_UINT8", (-1, -1), shown_as="MAP")  # depths have MAP, of another type
MOST_LABELS = 256


@dataclass(config=CHECKED, frozen=True)
class SegmentationMap(MapDecoder, Labelled):
    """A label for every pixel, by a head on the vector of each patch.

    Args:
        labels: by their numbers in masks; by default the numbers themselves, up to the highest in the rows.
        size: height and width of every map, whatever the picture's own, or one number for both.
    """

    kind: Literal["segmentation"] = field(default="segmentation", kw_only=True, repr=False)
    gives = (LABEL_MAP, SCORES)
    output = LABEL_MAP.name
    label_column = "mask"
    label_folder = "masks"

    @field_validator("labels")
    @classmethod
    def _few(cls, labels: Sequence[str], info: ValidationInfo) -> Sequence[str]:
        if len(labels) > MOST_LABELS:
            raise ValueError(f"there are {len(labels)} labels, and a map of bytes tells {MOST_LABELS} apart")
        return labels

    @property
    def width(self) -> int:
        return len(self.labels)

    def answer(self, patches: Array) -> dict[str, npt.NDArray[Any]]:
        best = np.concatenate([block.argmax(axis=-1).astype(np.uint8) for block in enlarged(patches, self.size)])
        return {LABEL_MAP.name: best, "SCORES": softmax(patches).mean(axis=(0, 1))}

    def sizes(self, directory: Path, hidden: int | None) -> dict[str, int | None]:
        return super().sizes(directory, hidden) | {"SCORES": len(self.labels)}

    @classmethod
    def result(cls, labels: Sequence[str], item: Any, outputs: Outputs, truncated: bool) -> Result:
        return LabelMap(outputs["MAP"], scores_by_label(labels, outputs["SCORES"]), truncated)

    # -- fitting

    def with_labels_of(self, rows: Rows) -> Self:
        if self.labels:
            return self
        highest = max((int(each.max()) for each in self._masks(rows)), default=UNKNOWN)
        return replace(self, labels=[str(number) for number in range(highest + 1)])

    def remarks(self, rows: Rows) -> list[str]:
        found = {number for mask in self._masks(rows) for number in np.unique(mask).tolist()} - {UNKNOWN}
        if len(found) < 2:
            known = named([self.labels[number] for number in found]) if found else "no label"
            raise TaskProblem(
                f"{rows.source}: all pixels have {known}, which leaves nothing to tell apart. Give masks with at least "
                "two labels"
            )
        missing = [label for number, label in enumerate(self.labels) if number not in found]
        if not missing:
            return []
        return [f"{rows.source}: {named(missing)} {'has' if len(missing) == 1 else 'have'} no pixel. Give some"]

    def targets(self, rows: Rows) -> list[Numbers]:
        """[h, w] of the map's size."""
        return [resized(mask, self.size) for mask in self._masks(rows)]

    def _masks(self, rows: Rows) -> Iterator[Numbers]:
        return read_maps(rows, lambda label: numbers_of(label, len(self.labels)))

    def loss(self, values: Tensor, targets: Tensor, class_weights: Tensor | None) -> Tensor:
        from fmplex_backend.families.vision_encoder import dense

        if values.dim() == 3:
            values, targets = self.apart(values, targets)
        return dense.cross_entropy(values, targets, class_weights)

    def apart(self, vectors: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        from fmplex_backend.families.vision_encoder import dense

        return vectors.flatten(0, 1), dense.label_shares(targets, vectors.shape[1], len(self.labels)).flatten(0, 1)

    def figure_of(self, values: Tensor, targets: Tensor) -> tuple[str, float] | None:
        from fmplex_backend.families.vision_encoder import dense

        return "pixel_accuracy", dense.accuracy(*self.apart(values, targets))

    def balanced_weights(self, targets: Sequence[Any]) -> Tensor:
        return weights_of_classes(np.concatenate([target.ravel() for target in targets]), len(self.labels))

    def figures(self, rows: Rows, outputs: Sequence[Outputs]) -> Evaluation:
        """Of all pixels of the masks that have a label; the mean is over labels that occur, in masks or in maps."""
        from fmplex_backend.decoders.figures import DIGITS, Evaluation

        count = len(self.labels)
        matrix = np.zeros((count, count), dtype=np.int64)
        for mask, each in zip(self._masks(rows), outputs, strict=True):
            known, found = mask != UNKNOWN, resized(each["MAP"], mask.shape)
            pairs = mask[known].astype(np.int64) * count + found[known]
            matrix += np.bincount(pairs, minlength=count * count).reshape(count, count)
        right = matrix.diagonal()
        either = matrix.sum(axis=0) + matrix.sum(axis=1) - right
        figures = {
            "mean_iou": float((right[either > 0] / either[either > 0]).mean()) if either.any() else 0.0,
            "pixel_accuracy": float(right.sum() / max(1, matrix.sum())),
        }
        return Evaluation({name: round(value, DIGITS) for name, value in figures.items()}, len(rows))
