"""FORECAST [horizon, channels]: the next steps of a series, by a head on the vectors of its patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from fmplex_backend.decoders.decoder import Array, Decoder, Encoded, LoadedDecoder, Outputs
from fmplex_backend.decoders.head import Head, HeadDecoder
from fmplex_backend.decoders.results import Result
from fmplex_backend.decoders.rows import Rows
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.time_series.architectures import PATCHES
from fmplex_backend.families.time_series.results import Forecast
from fmplex_backend.families.time_series.windows import Future, later_part, windows_of
from fmplex_backend.interface import TensorSpec
from fmplex_backend.section import CHECKED, TrainingOnly

if TYPE_CHECKING:
    from torch import Tensor

    from fmplex_backend.decoders.figures import Evaluation
    from fmplex_backend.decoders.trainable import TrainableHead

FORECAST = TensorSpec("FORECAST", "TYPE_FP32", (-1, -1))
MOST_STEPS = 4096  # of a horizon
CONTEXT = 512  # steps before those that are forecast, which a window for training has, at most

Horizon = Annotated[int, Field(ge=1, le=MOST_STEPS)]


@dataclass(config=CHECKED, frozen=True)
class Forecasting(Decoder):
    """Base of the kinds that forecast: rows out of series, result and figures."""

    gives = (FORECAST,)
    labels_itself = True
    with_future: ClassVar[bool] = False  # whether a row has the steps that are forecast too

    @property
    def reads(self) -> str:
        return PATCHES

    @property
    def steps(self) -> int:
        """That rows are to have as labels; raises TaskProblem where it is not said."""
        raise NotImplementedError

    @property
    def before(self) -> int:
        """The steps of a row, at most."""
        return CONTEXT

    def sizes(self, directory: Path, hidden: int | None) -> dict[str, int | None]:
        return {"FORECAST": None}

    @classmethod
    def result(cls, labels: Sequence[str], item: Any, outputs: Outputs, truncated: bool) -> Result:
        return Forecast(outputs["FORECAST"], truncated)

    def rows_from(self, items: Sequence[Any], source: str) -> Rows:
        return windows_of(items, source, self.steps, self.before, with_future=self.with_future)

    def split(self, rows: Rows, part: float) -> tuple[list[int], list[int]] | None:
        return later_part(rows.labels, part, self.steps)

    def targets(self, rows: Rows) -> list[Array]:
        return [self._future(label, place, rows) for place, label in enumerate(rows.labels)]

    def _future(self, label: Any, place: int, rows: Rows) -> Array:
        """Of a window, or as it was given: [horizon, channels] or, of one channel, [horizon]."""
        try:
            values = np.asarray(label.values if isinstance(label, Future) else label, dtype=np.float32)
        except (TypeError, ValueError):
            values = np.empty((0, 0), dtype=np.float32)
        values = values[:, None] if values.ndim == 1 else values
        if values.shape != (self.steps, rows.items[place].channels):
            raise TaskProblem(
                f"{rows.source}, row {place}: its label is no {self.steps} steps of {rows.items[place].channels} "
                "channels. Give what follows the series, or series alone: windows are cut out of them"
            )
        return values

    def figures(self, rows: Rows, outputs: Sequence[Outputs]) -> Evaluation:
        """Mean errors in the series' own unit, and those of saying the last known value again."""
        from fmplex_backend.decoders.figures import DIGITS, Evaluation

        wanted = np.concatenate([each.ravel() for each in self.targets(rows)])
        found = np.concatenate([each["FORECAST"][: self.steps].ravel() for each in outputs])
        again = np.concatenate([np.tile(last_known(item.values), (self.steps, 1)).ravel() for item in rows.items])
        known = ~np.isnan(wanted)
        error, naive = np.abs(found - wanted)[known], np.abs(again - wanted)[known]
        figures = {"mae": error.mean(), "rmse": np.sqrt(np.square(error).mean()), "naive_mae": naive.mean()}
        return Evaluation({name: round(float(value), DIGITS) for name, value in figures.items()}, len(rows))


@dataclass(config=CHECKED, frozen=True)
class _Steps(Decoder):
    horizon: Horizon  # a base of its own, so that it is the first positional argument


@dataclass(config=CHECKED, frozen=True)
class Forecaster(HeadDecoder, Forecasting, _Steps):
    """The next `horizon` steps, all at once, by a head that is fitted to windows of series; any number of channels.

    Args:
        context: steps that a window for training has before those to be forecast, at most.
    """

    context: TrainingOnly[int] = field(default=CONTEXT, compare=False)

    kind: Literal["forecast"] = field(default="forecast", kw_only=True, repr=False)

    @property
    def width(self) -> int:
        return self.horizon

    @property
    def steps(self) -> int:
        return self.horizon

    @property
    def before(self) -> int:
        return self.context

    def load(self, directory: Path, hidden: int) -> LoadedDecoder:
        head = self.load_head(directory, hidden, self.horizon)

        def decode(encoded: Encoded) -> dict[str, Array]:
            return {"FORECAST": forecast_of(head, encoded).swapaxes(1, 2)}

        return LoadedDecoder(PATCHES, self.sizes(directory, hidden), decode)

    def trainable(self, hidden: int, class_weights: Tensor | None = None) -> TrainableHead:
        from fmplex_backend.decoders.trainable import TrainableHead
        from fmplex_backend.families.time_series import heads

        layers = heads.ChannelLayers((hidden, *self.hidden, self.horizon), self.activation, self.dropout)
        return TrainableHead(layers, reads=PATCHES, loss=heads.squared_error, stack=heads.stacked, apart=heads.apart)


def forecast_of(head: Head, encoded: Encoded) -> Array:
    """[n, channels, horizon], in the series' own unit."""
    states = encoded.vectors
    found: Array = head(states[..., :-2]) * states[..., -1:] + states[..., -2:-1]
    return found


def last_known(values: Array) -> Array:
    """The last value of each channel that is not missing; [channels], NaN where there is none."""
    known = ~np.isnan(values)
    place = len(values) - 1 - known[::-1].argmax(axis=0)
    found: Array = values[place, np.arange(values.shape[1])]
    return found
