"""Series -> what decoders read while a task is fitted, as the server computes it. Imported only when fitting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fmplex_backend.decoders.rows import Rows
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.fitting import LearnsNothing, PooledFeatures
from fmplex_backend.families.time_series.architectures import PATCHES
from fmplex_backend.families.time_series.preprocessing import Context
from fmplex_backend.families.time_series.runtime import TimeSeriesRuntime
from fmplex_backend.families.time_series.sections import Window
from fmplex_backend.families.time_series.windows import Future


@dataclass(frozen=True, slots=True)
class SeriesExample:
    """A series as the backbone takes it: one row, or one for each channel."""

    contexts: list[Context]
    words: ClassVar[Sequence[int]] = ()
    rows: ClassVar[int] = 1

    @property
    def length(self) -> int:
        """Tokens of all its rows."""
        return sum(context.length for context in self.contexts)


class SeriesFittingInputs(LearnsNothing):
    """A task's encoder while the task is fitted."""

    def __init__(self, encoder: Window, runtime: TimeSeriesRuntime) -> None:
        self.encoder, self.runtime = encoder, runtime

    def examples(self, rows: Rows, *, reads: str) -> list[SeriesExample]:
        """Rows ready for `SeriesFeatures`; raises TaskProblem for the first that cannot be read."""
        return [
            self._example(place, item, label, rows.source)
            for place, (item, label) in enumerate(zip(rows.items, rows.labels, strict=True))
        ]

    def features(self, bare: Any, model: Any, reads: str) -> SeriesFeatures:
        """A pooling over the bare backbone and over the model that is being fitted."""
        if reads == "cls" and not self.runtime.anatomy.extra:
            raise TaskProblem("decoder.pooling: it is cls, but the backbone has no class token. Say mean or max")
        return SeriesFeatures(bare, model, reads, self.runtime)

    def _example(self, place: int, item: Any, label: Any, source: str) -> SeriesExample:
        """Of a window the steps before its future, whether it has that too or not."""
        values = item.values
        if isinstance(label, Future) and label.included:
            values = values[: len(values) - len(label.values)]
        if self.encoder.channels is not None and item.channels != self.encoder.channels:
            raise TaskProblem(
                f"{source}, row {place}: it has {item.channels} channels, encoder.channels is {self.encoder.channels}. "
                "Correct one of them"
            )
        try:
            return SeriesExample(self.runtime.preprocessor.rows(values, self.encoder.steps))
        except ValueError as error:
            raise TaskProblem(f"{source}, row {place}: {error}") from None


class SeriesFeatures(PooledFeatures[SeriesExample]):
    """See `PooledFeatures`; of PATCHES [n, channels, t * d + 2], so that all series have as many channels."""

    def __init__(self, bare: Any, model: Any, reads: str, runtime: TimeSeriesRuntime) -> None:
        super().__init__(bare, model, reads, runtime.device)
        self.runtime = runtime

    def through(self, model: Any, examples: Sequence[SeriesExample]) -> Tensor:
        counts = [len(each.contexts) for each in examples]
        packed = self.runtime.forward.packed([row for each in examples for row in each.contexts]).to(self.device)
        anatomy = self.runtime.anatomy
        found: Tensor = anatomy.read(self.reads, anatomy.states(model, packed[0], packed[1] > 0))
        if self.reads == PATCHES:
            if len(set(counts)) > 1:
                raise TaskProblem(
                    f"the series have {min(counts)} to {max(counts)} channels, and one forecaster is fitted to series "
                    "of as many. Give those of one kind"
                )
            return found.flatten(0, 1).view(len(examples), -1, found.shape[-1])
        parts = torch.split(found, counts)
        return torch.stack([part.amax(dim=0) if self.reads == "max" else part.mean(dim=0) for part in parts])
