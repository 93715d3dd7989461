"""Real numbers: SCORES ([outputs], the head's values as they are)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from fmplex_backend.decoders.decoder import Decoder, Encoded, LoadedDecoder, Outputs
from fmplex_backend.decoders.head import PooledHeadDecoder, output_width
from fmplex_backend.decoders.results import Result, Values
from fmplex_backend.decoders.rows import Rows
from fmplex_backend.errors import TaskProblem
from fmplex_backend.interface import SCORES
from fmplex_backend.section import CHECKED, TrainingOnly

if TYPE_CHECKING:
    from torch import Tensor

    from fmplex_backend.decoders.figures import Evaluation


@dataclass(config=CHECKED, frozen=True)
class _Numbers(Decoder):
    outputs: TrainingOnly[int] = 1  # a base of its own, so that it is the first positional argument


@dataclass(config=CHECKED, frozen=True)
class Regressor(PooledHeadDecoder, _Numbers):
    """`outputs` real numbers an item, fitted by mean squared error."""

    kind: Literal["regression"] = field(default="regression", kw_only=True, repr=False)
    gives = (SCORES,)

    @property
    def width(self) -> int:
        return self.outputs

    def load(self, directory: Path, hidden: int) -> LoadedDecoder:
        head = self.load_head(directory, hidden)

        def decode(encoded: Encoded) -> dict[str, npt.NDArray[Any]]:
            return {"SCORES": head(self.vectors(encoded))}

        return LoadedDecoder(self.pooling, {"SCORES": head.outputs}, decode)

    def sizes(self, directory: Path, hidden: int | None) -> dict[str, int | None]:
        return {"SCORES": output_width(directory / self.weights)}

    @classmethod
    def result(cls, labels: Sequence[str], item: Any, outputs: Outputs, truncated: bool) -> Result:
        return Values(outputs["SCORES"], truncated)

    def as_saved(self, tensors: Mapping[str, Tensor]) -> Self:
        biases = [each for name, each in sorted(tensors.items()) if name.endswith("bias")]
        return replace(super().as_saved(tensors), outputs=len(biases[-1]) if biases else 1)

    def targets(self, rows: Rows) -> list[list[float]]:
        return [self._numbers(value, place, rows) for place, value in enumerate(rows.labels)]

    def _numbers(self, value: Any, place: int, rows: Rows) -> list[float]:
        many = value if isinstance(value, (list, tuple)) else [value]
        try:
            numbers = [float(each) for each in many]
        except (TypeError, ValueError):
            numbers = [math.nan]
        if len(numbers) != self.outputs or not all(map(math.isfinite, numbers)):
            raise TaskProblem(
                f"{rows.source}, row {place}: {value!r} is not {self.outputs} finite number{'s' * (self.outputs > 1)}. "
                "Correct it, or set Regressor(outputs=...)"
            )
        return numbers

    def loss(self, values: Tensor, targets: Tensor, class_weights: Tensor | None) -> Tensor:
        from torch.nn import functional

        return functional.mse_loss(values, targets)

    def stack(self, targets: Sequence[Any]) -> Tensor:
        import torch

        return torch.tensor(targets, dtype=torch.float32)

    def figures(self, rows: Rows, outputs: Sequence[Outputs]) -> Evaluation:
        from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

        from fmplex_backend.decoders.figures import DIGITS, Evaluation

        found = np.stack([each["SCORES"] for each in outputs])
        wanted = np.array(replace(self, outputs=found.shape[1]).targets(rows))
        figures = {"mae": mean_absolute_error(wanted, found), "rmse": root_mean_squared_error(wanted, found)}
        if len(wanted) > 1:
            figures["r2"] = r2_score(wanted, found)
        return Evaluation({name: round(float(value), DIGITS) for name, value in figures.items()}, len(rows))
