"""Any number of labels: SCORES (sigmoid, [C]) and LABEL ([C]: those over the threshold, best first, then "")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from pydantic.dataclasses import dataclass

from fmplex_backend.decoders.agreement import Agreed, same_set
from fmplex_backend.decoders.decoder import Encoded, Labelled, LoadedDecoder, Outputs
from fmplex_backend.decoders.head import PooledHeadDecoder
from fmplex_backend.decoders.results import Labels, Result, scores_by_label, strings
from fmplex_backend.decoders.rows import Rows, label_number, label_set, named
from fmplex_backend.errors import TaskProblem
from fmplex_backend.interface import LABEL, SCORES
from fmplex_backend.section import CHECKED

if TYPE_CHECKING:
    from torch import Tensor

    from fmplex_backend.decoders.figures import Evaluation

MAX_POSITIVE_WEIGHT = 100.0  # bounds pos_weight of labels that hardly occur


@dataclass(config=CHECKED, frozen=True)
class MultiLabel(PooledHeadDecoder, Labelled):
    """Any number of labels: those whose probability reaches the threshold."""

    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5

    kind: Literal["multi-label"] = field(default="multi-label", kw_only=True, repr=False)
    gives = (SCORES, LABEL)

    def load(self, directory: Path, hidden: int) -> LoadedDecoder:
        head = self.load_head(directory, hidden, len(self.labels))
        labels = np.array(self.labels, dtype=np.object_)

        def decode(encoded: Encoded) -> dict[str, npt.NDArray[Any]]:
            scores = 0.5 * (1 + np.tanh(0.5 * head(self.vectors(encoded))))  # sigmoid that cannot overflow
            order = np.argsort(-scores, axis=-1, kind="stable")
            best = labels[order]
            best[np.take_along_axis(scores, order, axis=-1) < self.threshold] = ""
            return {"SCORES": scores, "LABEL": best}

        return LoadedDecoder(self.pooling, self.sizes(directory, hidden), decode)

    def sizes(self, directory: Path, hidden: int | None) -> dict[str, int | None]:
        return {"SCORES": len(self.labels), "LABEL": len(self.labels)}

    @classmethod
    def result(cls, labels: Sequence[str], item: Any, outputs: Outputs, truncated: bool) -> Result:
        scores = scores_by_label(labels, outputs["SCORES"])
        return Labels(tuple(label for label in strings(outputs["LABEL"]) if label), scores, truncated)

    @classmethod
    def agreed(cls, one: Outputs, other: Outputs, tolerance: float) -> Agreed:
        """The same labels, in whatever order."""
        return same_set(one["LABEL"], other["LABEL"])

    def labels_in(self, rows: Rows) -> set[str]:
        return {label for value in rows.labels for label in label_set(value)}

    def remarks(self, rows: Rows) -> list[str]:
        if not self.labels:
            raise TaskProblem(f"{rows.source}: no row has a label. Fill in some, or name another label column")
        missing = sorted(set(self.labels) - self.labels_in(rows))
        return [f"{rows.source}: {named(missing)} has no row. Give some"] if missing else []

    def targets(self, rows: Rows) -> list[list[float]]:
        found = []
        for place, value in enumerate(rows.labels):
            known = {label_number(self.labels, label, place, rows) for label in label_set(value)}
            found.append([float(number in known) for number in range(len(self.labels))])
        return found

    def loss(self, values: Tensor, targets: Tensor, class_weights: Tensor | None) -> Tensor:
        from torch.nn import functional

        return functional.binary_cross_entropy_with_logits(values, targets, pos_weight=class_weights)

    def figure_of(self, values: Tensor, targets: Tensor) -> tuple[str, float] | None:
        found, wanted = values.sigmoid() >= self.threshold, targets > 0.5
        total = int(found.sum()) + int(wanted.sum())
        return "micro_f1", 2 * int((found & wanted).sum()) / total if total else 0.0

    def stack(self, targets: Sequence[Any]) -> Tensor:
        import torch

        return torch.tensor(targets, dtype=torch.float32)

    def balanced_weights(self, targets: Sequence[Any]) -> Tensor:
        """`pos_weight` of the binary cross-entropy [labels]: negatives per positive, 1 to MAX_POSITIVE_WEIGHT."""
        import torch

        flags = np.array(targets)
        present = flags.sum(axis=0)
        ratio = (len(flags) - present) / np.maximum(present, 1)
        return torch.tensor(ratio, dtype=torch.float32).clamp(1.0, MAX_POSITIVE_WEIGHT)

    def figures(self, rows: Rows, outputs: Sequence[Outputs]) -> Evaluation:
        from sklearn.metrics import f1_score

        from fmplex_backend.decoders.figures import DIGITS, Evaluation

        predicted = [set(strings(each["LABEL"])) for each in outputs]
        found = [[int(label in names) for label in self.labels] for names in predicted]
        wanted = self.targets(rows)
        f1 = {
            f"{average}_f1": round(float(f1_score(wanted, found, average=average, zero_division=0.0)), DIGITS)
            for average in ("micro", "macro")
        }
        return Evaluation(f1, len(rows), tuple(self.labels))
