"""IMPUTED [steps, channels]: the last steps of a series with its missing values filled in, patch by patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from fmplex_backend.decoders.decoder import Array, Encoded, LoadedDecoder, Outputs
from fmplex_backend.decoders.head import HeadDecoder
from fmplex_backend.decoders.results import Result
from fmplex_backend.decoders.rows import Rows
from fmplex_backend.errors import TaskProblem, TaskRefused
from fmplex_backend.families.time_series.architectures import PATCHES
from fmplex_backend.families.time_series.patching import Patching, whole_patches
from fmplex_backend.families.time_series.results import Filled
from fmplex_backend.families.time_series.series import TimeSeries, series_of
from fmplex_backend.families.time_series.windows import Future, later_part, windows_of
from fmplex_backend.interface import TensorSpec
from fmplex_backend.section import CHECKED, TrainingOnly

if TYPE_CHECKING:
    from torch import Tensor

    from fmplex_backend.decoders.figures import Evaluation
    from fmplex_backend.decoders.trainable import TrainableHead
    from fmplex_backend.families.time_series.anatomy import Anatomy

IMPUTED = TensorSpec("IMPUTED", "TYPE_FP32", (-1, -1))
SEED = 0  # of the gaps that are made
KEPT = 16  # steps in a row: they hold a patch of 8 wherever it begins, and MOMENT sees patches without gaps alone


@dataclass(config=CHECKED, frozen=True)
class Imputer(HeadDecoder):
    """The missing values among the last steps of a series, by a head on the vector of each patch.

    `fit` makes gaps in windows of series that are known, and learns to fill them.

    Args:
        gap: steps of a gap at most, and `missing`: the part of a window that is taken out.
        patching: of the backbone, as `fit` finds it.
    """

    gap: TrainingOnly[Annotated[int, Field(ge=1)]] = field(default=24, compare=False)
    missing: TrainingOnly[Annotated[float, Field(gt=0, lt=1)]] = field(default=0.25, compare=False)
    context: TrainingOnly[int] = field(default=512, compare=False)
    patching: Patching | None = field(default=None, kw_only=True, repr=False)

    kind: Literal["imputation"] = field(default="imputation", kw_only=True, repr=False)
    gives = (IMPUTED,)
    labels_itself = True

    @property
    def reads(self) -> str:
        return PATCHES

    @property
    def cut(self) -> Patching:
        assert self.patching is not None  # checked when it is loaded, and completed before it is fitted
        return self.patching

    def completed(self, anatomy: Anatomy) -> Self:
        """With the patching of a backbone."""
        cut = Patching(anatomy.patch, anatomy.stride, anatomy.extra, anatomy.patches + anatomy.extra)
        return replace(self, patching=cut)

    def sizes(self, directory: Path, hidden: int | None) -> dict[str, int | None]:
        return {"IMPUTED": None}

    def load(self, directory: Path, hidden: int) -> LoadedDecoder:
        if self.patching is None:
            raise TaskRefused(directory / "task.json", "decoder.patching", "it is missing", "Fit the decoder again")
        cut = self.cut
        if hidden % cut.tokens:
            problem = f"it has {cut.tokens} tokens, and the backbone's have {hidden} numbers together"
            raise TaskRefused(directory / "task.json", "decoder.patching", problem, "Fit the decoder again")
        width = hidden // cut.tokens
        head = self.load_head(directory, width, cut.patch)

        def decode(encoded: Encoded) -> dict[str, Array]:
            states = encoded.vectors  # [n, c, t * d + 2]
            context = len(encoded.rows[0].values)
            starts = cut.starts(context)
            tokens = states[..., :-2].reshape(*states.shape[:2], -1, width)[:, :, -len(starts) :]
            pieces = head(tokens) * states[..., None, -1:] + states[..., None, -2:-1]  # [n, c, p, patch]
            return {"IMPUTED": _laid(pieces, starts, encoded.rows)}

        return LoadedDecoder(PATCHES, self.sizes(directory, hidden), decode)

    @classmethod
    def result(cls, labels: Sequence[str], item: Any, outputs: Outputs, truncated: bool) -> Result:
        """Shorter series of a request are answered in the length of the longest, see `SeriesInput.array`."""
        return Filled(outputs["IMPUTED"][-series_of(item).steps :], truncated)

    # -- fitting

    def rows_from(self, items: Sequence[Any], source: str) -> Rows:
        """Windows with gaps; their labels are what was there, NaN elsewhere."""
        windows, rng = windows_of(items, source, 1, self.context - 1, with_future=True), np.random.default_rng(SEED)
        rows, labels = [], []
        for item, future in zip(windows.items, windows.labels, strict=True):
            gaps = self._gaps(rng, item.values)
            rows.append(TimeSeries(np.where(gaps, np.float32(np.nan), item.values), item.names))
            labels.append(Future(np.where(gaps, item.values, np.float32(np.nan)), future.start, False))
        return Rows(rows, labels, [], source)

    def _gaps(self, rng: np.random.Generator, values: Array) -> npt.NDArray[np.bool_]:
        """[steps, channels]; of a channel at least two values stay, and KEPT steps in a row."""
        steps, channels = values.shape
        gaps = np.zeros(values.shape, dtype=np.bool_)
        for channel in range(channels):
            while gaps[:, channel].mean() < self.missing:
                length = int(rng.integers(1, min(self.gap, max(1, steps // 2)) + 1))
                start = int(rng.integers(0, steps - length + 1))
                gaps[start : start + length, channel] = True
            if not whole_patches(~gaps[:, [channel]], KEPT, 1).any():
                start = int(rng.integers(0, max(1, steps - KEPT + 1)))
                gaps[start : start + KEPT, channel] = False
            if np.count_nonzero(~np.isnan(values[:, channel]) & ~gaps[:, channel]) < 2:
                gaps[:, channel] = False
        return gaps

    def split(self, rows: Rows, part: float) -> tuple[list[int], list[int]] | None:
        return later_part(rows.labels, part, self.context)

    def targets(self, rows: Rows) -> list[Array]:
        if not all(isinstance(label, Future) for label in rows.labels):
            raise TaskProblem(f"{rows.source}: labels are not read here. Give series alone: gaps are made in them")
        return [label.values for label in rows.labels]

    def trainable(self, hidden: int, class_weights: Tensor | None = None) -> TrainableHead:
        from fmplex_backend.families.time_series import heads

        return heads.imputing(hidden // self.cut.tokens, self.hidden, self.cut, self.activation, self.dropout)

    def figures(self, rows: Rows, outputs: Sequence[Outputs]) -> Evaluation:
        """The mean error in the gaps that were made, in the series' own unit, and that of straight lines over them."""
        from fmplex_backend.decoders.figures import DIGITS, Evaluation

        errors, lines = [], []
        for item, wanted, each in zip(rows.items, self.targets(rows), outputs, strict=True):
            steps = min(len(each["IMPUTED"]), item.steps)
            known = ~np.isnan(wanted[-steps:])
            errors.append(np.abs(each["IMPUTED"][-steps:] - wanted[-steps:])[known])
            lines.append(np.abs(_straight(item.values)[-steps:] - wanted[-steps:])[known])
        figures = {"mae": np.concatenate(errors).mean(), "line_mae": np.concatenate(lines).mean()}
        return Evaluation({name: round(float(value), DIGITS) for name, value in figures.items()}, len(rows))


def _laid(pieces: Array, starts: Sequence[int], rows: Sequence[Any]) -> Array:
    """Patches [n, c, p, patch] -> [n, steps, c]: where they overlap their mean; what was observed as it was sent."""
    items, channels, _, patch = pieces.shape
    values = np.stack([row.values.T for row in rows]).reshape(items, channels, -1)
    observed = np.stack([row.observed.T for row in rows]).reshape(values.shape)
    sums, counts = np.zeros_like(values), np.zeros(values.shape[-1], dtype=np.float32)
    for place, start in enumerate(starts):
        sums[..., start : start + patch] += pieces[:, :, place]
        counts[start : start + patch] += 1
    filled = np.where(observed | (counts == 0), values, sums / np.maximum(counts, 1))
    steps = max(row.steps for row in rows)
    found: Array = filled[..., -steps:].swapaxes(1, 2)
    return found


def _straight(values: Array) -> Array:
    """Lines over the gaps of each channel."""
    found = values.copy()
    for channel in found.T:
        known = ~np.isnan(channel)
        if known.any():
            channel[~known] = np.interp(np.flatnonzero(~known), np.flatnonzero(known), channel[known])
    return found
