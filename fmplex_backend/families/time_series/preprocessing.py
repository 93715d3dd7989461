"""From series to what a time-series backbone takes: the last steps, with a mask of what was observed.

Shorter series are padded before their first step, and padding is a missing value like any other. In the place of a
missing value stands the mean of the channel's observed ones: scaled by the model it is 0, which is what the models put
in the place of masked patches when they are trained. (transformers' pages put 0 there before scaling, which is far off
in a series around 1,000.) A model's level and scale are of the observed values alone, whatever stands in the gaps.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fmplex_backend.errors import InvalidRequest
from fmplex_backend.families.time_series.anatomy import Anatomy
from fmplex_backend.families.time_series.patching import whole_patches
from fmplex_backend.families.time_series.series import Array

LARGEST = 1e15  # the sum of a few thousand squares of it is a float32
LEAST_OBSERVED = 2  # values of a channel: one has no scale


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """A row: the last steps of a series, or of one channel of it. [context, channels]."""

    values: Array
    observed: npt.NDArray[np.bool_]
    length: int  # tokens
    steps: int  # of them those that were sent, the last ones
    after: Array | None = None  # [held back, channels]: the steps behind it, where a decoder compares with them

    @property
    def key(self) -> Hashable:
        """All that its hidden states depend on."""
        return self.values.shape, self.values.tobytes(), self.observed.tobytes()

    @property
    def bytes(self) -> int:
        """Of memory, with its key."""
        return 2 * (self.values.nbytes + self.observed.nbytes) + (0 if self.after is None else self.after.nbytes)


class Preprocessor:
    """Rows for a backbone.

    Args:
        most: channels of a series.
    """

    def __init__(self, anatomy: Anatomy, most: int) -> None:
        self.anatomy, self.most = anatomy, most

    def rows(self, series: Array, steps: int | None = None, held_back: int = 0) -> list[Context]:
        """[time, channels] -> a row, or one for each channel; raises ValueError.

        Args:
            steps: to be seen, at most.
            held_back: steps at the end that are not.
        """
        self._check(series, held_back)
        known = len(series) - held_back
        first = max(0, known - min(steps or self.anatomy.context, self.anatomy.context))
        values, observed = self._placed(series[first:known])
        after = series[known:].copy() if held_back else None
        if after is not None and (problem := _problem(after)):
            raise ValueError(problem)
        sent = known - first
        length = self.anatomy.tokens_of(sent)
        if not self.anatomy.separate:
            return [Context(values, observed, length, sent, after)]
        return [
            Context(
                np.ascontiguousarray(values[:, [place]]),
                np.ascontiguousarray(observed[:, [place]]),
                length,
                sent,
                None if after is None else after[:, [place]],
            )
            for place in range(values.shape[1])
        ]

    def _check(self, series: Array, held_back: int) -> None:
        time, channels = series.shape
        if channels > self.most:
            raise ValueError(
                f"it has {channels:,} channels, {self.most:,} are allowed; send some of them, or raise the backbone's "
                "parameter max_channels"
            )
        if not self.anatomy.separate and channels != self.anatomy.channels:
            raise ValueError(
                f"it has {channels} channels, and the backbone sees {self.anatomy.channels} at once; send these"
            )
        if time < held_back + LEAST_OBSERVED:
            behind = f"beside the last {held_back}, which are compared with what is expected, " if held_back else ""
            raise ValueError(f"it has {time} steps; {behind}at least {LEAST_OBSERVED} are needed")

    def _placed(self, series: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
        """[time, channels] -> values and what of them was observed, both [context, channels]."""
        if problem := _problem(series):
            raise ValueError(problem)
        known = ~np.isnan(series)
        counts = known.sum(axis=0)
        poor = int(counts.argmin())
        if counts[poor] < LEAST_OBSERVED:
            which = f"channel {poor} has" if series.shape[1] > 1 else "it has"
            raise ValueError(
                f"{which} {counts[poor]} values in the last {len(series)} steps, all others are missing; at least "
                f"{LEAST_OBSERVED} are needed"
            )
        if self.anatomy.architecture.whole_patches:
            self._check_whole(known)
        zeroed = np.where(known, series, np.float32(0))
        means = (zeroed.sum(axis=0, dtype=np.float64) / counts).astype(np.float32)
        context = self.anatomy.context
        values = np.tile(means, (context, 1))
        observed = np.zeros((context, series.shape[1]), dtype=np.bool_)
        values[context - len(series) :] = np.where(known, series, means)
        observed[context - len(series) :] = known
        return values, observed

    def _check_whole(self, known: npt.NDArray[np.bool_]) -> None:
        """Raise ValueError where the model would see nothing of a channel."""
        patch = self.anatomy.patch
        whole = whole_patches(known, patch, self.anatomy.stride).any(axis=0)
        if not whole.all():
            which = f"channel {int(whole.argmin())}" if known.shape[1] > 1 else "it"
            raise ValueError(
                f"{which} has no {patch} values in a row where the backbone cuts it: it sees {patch} steps at a time, "
                f"counted from the last, and leaves out those with a missing one. Send at least {patch} steps, or fill "
                "the gaps"
            )


class SeriesReader:
    """The backbone's preprocessor with a task's section.

    Args:
        channels: what a series must have; None: any number.
    """

    takes = "SERIES"

    def __init__(self, preprocessor: Preprocessor, steps: int | None, channels: int | None, held_back: int) -> None:
        self.preprocessor, self.steps, self.channels, self.held_back = preprocessor, steps, channels, held_back

    def encode(self, value: Any) -> list[list[Context]]:
        """SERIES [n, time, channels] -> the rows of each; raises InvalidRequest."""
        series = np.asarray(value)
        if series.ndim != 3 or series.dtype != np.float32 or 0 in series.shape:
            raise InvalidRequest(
                f"SERIES is {series.dtype} {list(series.shape)}; send float32 [n, time, channels], with no dim of 0"
            )
        if self.channels is not None and series.shape[2] != self.channels:
            raise InvalidRequest(
                f"SERIES has {series.shape[2]} channels, the task reads {self.channels}; send these, in the order of "
                "its training"
            )
        return [self._rows(place, each) for place, each in enumerate(series)]

    def _rows(self, place: int, series: Array) -> list[Context]:
        try:
            return self.preprocessor.rows(series, self.steps, self.held_back)
        except ValueError as error:
            raise InvalidRequest(f"SERIES[{place}]: {error}") from None


def _problem(series: Array) -> str:
    """What is wrong with values of a series; empty where nothing is."""
    largest = float(np.nanmax(np.abs(series), initial=0.0))
    if largest <= LARGEST:
        return ""
    place, channel = np.argwhere(np.abs(series) > LARGEST)[0]
    return (
        f"channel {channel} has the value {series[place, channel]:g} {len(series) - place} steps before the end; send "
        f"numbers up to {LARGEST:g}, or NaN for what is missing"
    )
