"""ANOMALY [horizon, channels]: how far the last steps of a series are from what was to be expected of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from fmplex_backend.decoders.confidence import CONFIDENCE_WEIGHTS
from fmplex_backend.decoders.decoder import Array, Encoded, LoadedDecoder, Outputs
from fmplex_backend.decoders.results import Result
from fmplex_backend.decoders.rows import Rows
from fmplex_backend.errors import TaskProblem, TaskRefused
from fmplex_backend.families.time_series.architectures import PATCHES
from fmplex_backend.families.time_series.forecasting import Forecaster, forecast_of
from fmplex_backend.families.time_series.results import Anomalies
from fmplex_backend.families.time_series.windows import Future
from fmplex_backend.interface import TensorSpec
from fmplex_backend.safetensors_header import Header, expect_floats, expect_names, expect_shape
from fmplex_backend.section import CHECKED, TrainingOnly

if TYPE_CHECKING:
    from torch import Tensor

    from fmplex_backend.decoders.confidence import Sample
    from fmplex_backend.decoders.figures import Evaluation

ANOMALY = TensorSpec("ANOMALY", "TYPE_FP32", (-1, -1))
MOST_HELD_BACK = 1024  # steps
LEAST_BOUND = 1e-3  # of an error in a series' scale


@dataclass(config=CHECKED, frozen=True)
class AnomalyDetector(Forecaster):
    """The last `horizon` steps of a series, compared with a forecast of them from the steps before.

    A step's score is its error, in the scale of its channel, in parts of the bound that only one in so many usual ones
    passes: `fit` takes it from validation rows, the last fifth of the series by default, for each step of the horizon.

    Args:
        passing: the part of the usual errors that are above 1.
    """

    passing: TrainingOnly[Annotated[float, Field(gt=0, lt=1)]] = field(default=0.005, compare=False)

    kind: Literal["anomaly"] = field(default="anomaly", kw_only=True, repr=False)  # type: ignore[assignment]
    gives = (ANOMALY,)
    with_future = True
    holds_out = 0.2

    def __post_init__(self) -> None:
        if self.horizon > MOST_HELD_BACK:
            raise ValueError(f"horizon is {self.horizon}, and at most {MOST_HELD_BACK} steps are compared")

    @property
    def held_back(self) -> int:
        """Steps at the end of a series that the backbone does not see."""
        return self.horizon

    @property
    def fits_confidence(self) -> bool:
        return True

    def sizes(self, directory: Path, hidden: int | None) -> dict[str, int | None]:
        return {"ANOMALY": None}

    def load(self, directory: Path, hidden: int) -> LoadedDecoder:
        head = self.load_head(directory, hidden, self.horizon)
        bounds = _read_bounds(directory / CONFIDENCE_WEIGHTS, self.horizon)

        def decode(encoded: Encoded) -> dict[str, Array]:
            expected = forecast_of(head, encoded)  # [n, c, horizon]
            came = np.stack([row.after.T for row in encoded.rows]).reshape(expected.shape)
            scores = np.abs(came - expected) / (encoded.vectors[..., -1:] * bounds)
            return {"ANOMALY": np.where(np.isnan(came), np.float32(0), scores).swapaxes(1, 2)}

        return LoadedDecoder(PATCHES, self.sizes(directory, hidden), decode)

    @classmethod
    def result(cls, labels: Sequence[str], item: Any, outputs: Outputs, truncated: bool) -> Result:
        return Anomalies(outputs["ANOMALY"], truncated)

    def targets(self, rows: Rows) -> list[Array]:
        if any(not isinstance(label, Future) for label in rows.labels):
            return [self._marks(label, place, rows) for place, label in enumerate(rows.labels)]
        return super().targets(rows)

    def _marks(self, label: Any, place: int, rows: Rows) -> Array:
        """Whether each of the last steps is anomalous, 0 or 1: [horizon]."""
        try:
            marks = np.asarray(label, dtype=np.float32)
        except (TypeError, ValueError):
            marks = np.empty((0, 0), dtype=np.float32)
        marks = marks.max(axis=1) if marks.ndim == 2 and marks.size else marks
        if marks.ndim != 1 or len(marks) < self.horizon or not np.isin(marks, (0, 1)).all():
            raise TaskProblem(
                f"{rows.source}, row {place}: its label is not 0 or 1 for each step. Give such a list, or series alone"
            )
        return marks[-self.horizon :]

    def confidence_of(
        self, training: Sample, targets: Sequence[Any], held: Sample | None, outside: Sample | None
    ) -> dict[str, Tensor]:
        """The bound of each step of the horizon, in the scale of a channel: [horizon]."""
        import torch

        from fmplex_backend.families.time_series import heads

        assert held is not None  # `holds_out`
        values = torch.from_numpy(held.values)
        came = heads.scaled(values[..., -2:], heads.stacked(held.targets), most=np.inf)  # scores have no limit
        error = (values[..., :-2] - came).abs()
        bounds = error.flatten(0, 1).nanquantile(1 - self.passing, dim=0).nan_to_num(LEAST_BOUND)
        return {"bounds": bounds.clamp_min(LEAST_BOUND).contiguous()}

    def figures(self, rows: Rows, outputs: Sequence[Outputs]) -> Evaluation:
        """Of series with marked steps, how these are found; of others the part of the steps that are said to be so."""
        from fmplex_backend.decoders.figures import DIGITS, Evaluation

        scores = np.stack([each["ANOMALY"].max(axis=1) for each in outputs])  # [rows, horizon]
        if all(isinstance(label, Future) for label in rows.labels):
            return Evaluation({"alarms": round(float((scores > 1).mean()), DIGITS)}, len(rows))
        from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

        marks, found = np.stack(self.targets(rows)).ravel() > 0, scores.ravel() > 1
        figures = {
            "f1": f1_score(marks, found, zero_division=0.0),
            "precision": precision_score(marks, found, zero_division=0.0),
            "recall": recall_score(marks, found, zero_division=0.0),
        }
        if 0 < marks.sum() < len(marks):
            figures["auroc"] = roc_auc_score(marks, scores.ravel())
        return Evaluation({name: round(float(value), DIGITS) for name, value in figures.items()}, len(rows))


def _read_bounds(file: Path, horizon: int) -> Array:
    """[horizon]; raises TaskRefused."""
    from fmplex_backend.weights import read_safetensors

    def check(header: Header) -> None:
        expect_names(file, header, ["bounds"], "the bounds of an anomaly task")
        expect_floats(file, header)
        expect_shape(file, "bounds", header["bounds"], (horizon,), "a bound for each step")

    bounds: Array = read_safetensors(file, partial(check))["bounds"].float().numpy()
    if not (bounds > 0).all():
        raise TaskRefused(file, "bounds", "it holds numbers that are not above 0", "Fit the decoder again")
    return bounds
