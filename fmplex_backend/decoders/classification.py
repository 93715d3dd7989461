"""One label of several: SCORES (softmax, [C]) and LABEL ([1])."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from fmplex_backend.decoders.agreement import Agreed, equal
from fmplex_backend.decoders.confidence import CONFIDENCE_WEIGHTS, Confidence, Sample, fit_confidence
from fmplex_backend.decoders.decoder import Encoded, Labelled, LoadedDecoder, Outputs
from fmplex_backend.decoders.head import PooledHeadDecoder, softmax
from fmplex_backend.decoders.results import Label, Result, scores_by_label, strings
from fmplex_backend.decoders.rows import IGNORED, Rows, label_number, named, places
from fmplex_backend.errors import TaskProblem
from fmplex_backend.interface import CONFIDENCE, LABEL, SCORES
from fmplex_backend.section import CHECKED

if TYPE_CHECKING:
    from torch import Tensor

    from fmplex_backend.decoders.figures import Evaluation


REJECTED = ""  # in the place of a label
LEARNED_THRESHOLD = 0.5  # of a learned confidence, for which both kinds of rows weigh the same
MANY = 10  # labels that are all different in so many rows are hardly labels


@dataclass(config=CHECKED, frozen=True)
class OneLabel(Labelled):
    """Base of the kinds that answer with one of several labels: outputs, targets, result and figures."""

    gives = (SCORES, LABEL)
    stratified = True

    def sizes(self, directory: Path, hidden: int | None) -> dict[str, int | None]:
        return {"SCORES": len(self.labels), "LABEL": 1}

    @classmethod
    def result(cls, labels: Sequence[str], item: Any, outputs: Outputs, truncated: bool) -> Result:
        scores = scores_by_label(labels, outputs["SCORES"])
        confidence = float(outputs["CONFIDENCE"][0]) if "CONFIDENCE" in outputs else None
        return Label(strings(outputs["LABEL"])[0], scores, truncated, confidence)

    @classmethod
    def agreed(cls, one: Outputs, other: Outputs, tolerance: float) -> Agreed:
        """Equal labels, whatever the scores."""
        return equal(one["LABEL"], other["LABEL"])

    def check_labels(self, rows: Rows) -> None:
        blank = [place for place, value in enumerate(rows.labels) if not str(value).strip()]
        if blank:
            raise TaskProblem(f"{rows.source}, {places(blank)}: there is no label. Fill it in, or leave the row out")
        several = [place for place, value in enumerate(rows.labels) if isinstance(value, (list, tuple, dict))]
        if several:
            raise TaskProblem(
                f"{rows.source}, {places(several)}: a row has one label here, not {rows.labels[several[0]]!r}. "
                "Give one, or fit a MultiLabel decoder (--decoder multi-label)"
            )

    def remarks(self, rows: Rows) -> list[str]:
        counts = Counter(self.labels[number] for number in self.targets(rows) if number != IGNORED)
        if len(counts) < 2:
            raise TaskProblem(
                f"{rows.source}: all rows have {named(list(counts))}, which leaves nothing to tell apart. "
                "Give rows of at least two labels, or name another label column"
            )
        found = []
        if len(counts) == len(rows) > MANY:
            found.append(f"{rows.source}: every row has a label of its own. Is it the right column?")
        rare = [label for label in self.labels if counts[label] == 1]
        if rare and not found:
            found.append(
                f"{rows.source}: {named(rare)} {'has' if len(rare) == 1 else 'have'} one row only. It is trained on "
                "and never held out, so that no figure says how well it is known. Give more"
            )
        missing = [label for label in self.labels if not counts[label]]
        if missing:
            found.append(f"{rows.source}: {named(missing)} {'has' if len(missing) == 1 else 'have'} no row. Give some")
        return found

    def targets(self, rows: Rows) -> list[int]:
        return [label_number(self.labels, value, place, rows) for place, value in enumerate(rows.labels)]

    def figures(self, rows: Rows, outputs: Sequence[Outputs]) -> Evaluation:
        from fmplex_backend.decoders.figures import compare_labels

        number = {label: place for place, label in enumerate(self.labels)}
        found = [number[strings(each["LABEL"])[0]] for each in outputs]
        return compare_labels(self.labels, self.targets(rows), found)


@dataclass(config=CHECKED, frozen=True)
class Classifier(PooledHeadDecoder, OneLabel):
    """One label of several, by a head with softmax; none, LABEL "", for what it is to reject.

    Args:
        reject_below: the CONFIDENCE under which an item is rejected; SCORES stay as they are. 0.5 with `reject_label`.
        reject_label: the label of rows that are out of scope. It is none of the task's labels: `fit` learns from these
            rows how the confidence is told, as the probability that an item is in scope.
        confidence: "score" is the highest of SCORES. "features" looks at the vector too, by tensors that `fit` makes:
            without out-of-scope rows, the part of in-scope items that are at least as far from the training rows.
            By default "features" with `reject_label`, else "score".
    """

    reject_below: Annotated[float, Field(gt=0, lt=1)] | None = field(default=None, kw_only=True)
    reject_label: str | None = field(default=None, kw_only=True)
    confidence: Literal["score", "features"] | None = field(default=None, kw_only=True)
    kind: Literal["classification"] = field(default="classification", kw_only=True, repr=False)
    may_give = (CONFIDENCE,)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.reject_label is not None and self.reject_label in self.labels:
            raise ValueError(f"reject_label is {self.reject_label!r}, which is one of the labels: take it out of them")
        if self.reject_label is not None and self.confidence == "score":
            raise ValueError('confidence is "score", which learns nothing from rows with reject_label: leave one out')
        return self

    @property
    def fits_confidence(self) -> bool:
        return self.confidence == "features" or self.reject_label is not None

    @property
    def plain(self) -> Self:
        return replace(self, reject_below=None, reject_label=None, confidence=None)

    @property
    def threshold(self) -> float | None:
        """The confidence under which LABEL is empty; None where nothing is rejected."""
        return LEARNED_THRESHOLD if self.reject_below is None and self.reject_label is not None else self.reject_below

    @property
    def gives_confidence(self) -> bool:
        """Whether it has the output CONFIDENCE."""
        return self.threshold is not None or self.confidence is not None

    def load(self, directory: Path, hidden: int) -> LoadedDecoder:
        head = self.load_head(directory, hidden, len(self.labels))
        labels = np.array(self.labels, dtype=np.object_)
        threshold = 0.0 if self.threshold is None else self.threshold
        confidence = None
        if self.fits_confidence:
            confidence = Confidence.read(directory / CONFIDENCE_WEIGHTS, hidden, len(self.labels))

        def decode(encoded: Encoded) -> dict[str, npt.NDArray[Any]]:
            vectors = self.vectors(encoded)
            values = head(vectors)
            scores = softmax(values)
            best = labels[scores.argmax(axis=-1)][:, None]
            if not self.gives_confidence:
                return {"SCORES": scores, "LABEL": best}
            sure = scores.max(axis=-1) if confidence is None else confidence(vectors, values)
            best[sure < threshold] = REJECTED
            return {"SCORES": scores, "LABEL": best, "CONFIDENCE": sure[:, None].astype(np.float32)}

        return LoadedDecoder(self.pooling, self.sizes(directory, hidden), decode)

    def sizes(self, directory: Path, hidden: int | None) -> dict[str, int | None]:
        return super().sizes(directory, hidden) | ({"CONFIDENCE": 1} if self.gives_confidence else {})

    def labels_in(self, rows: Rows) -> set[str]:
        return super().labels_in(rows) - {self.reject_label or ""}

    def targets(self, rows: Rows) -> list[int]:
        """Of rows that are out of scope IGNORED."""
        outside = self.reject_label
        return [
            IGNORED if outside is not None and str(value) == outside else label_number(self.labels, value, place, rows)
            for place, value in enumerate(rows.labels)
        ]

    def remarks(self, rows: Rows) -> list[str]:
        if self.reject_label is not None and IGNORED not in self.targets(rows):
            raise TaskProblem(
                f"{rows.source}: no row has the label {self.reject_label!r}, from which rejection is learned. Give "
                'some, or leave reject_label out: confidence="features" needs none'
            )
        return super().remarks(rows)

    def confidence_of(
        self, training: Sample, targets: Sequence[Any], held: Sample | None, outside: Sample | None
    ) -> dict[str, Tensor]:
        return fit_confidence(training, np.array(targets), held, outside).tensors()

    def figures(self, rows: Rows, outputs: Sequence[Outputs]) -> Evaluation:
        if not self.gives_confidence:
            return super().figures(rows, outputs)
        from fmplex_backend.decoders.figures import compare_rejecting

        found = [int(each["SCORES"].argmax()) for each in outputs]
        rejected = [strings(each["LABEL"])[0] == REJECTED for each in outputs]
        sure = [float(each["CONFIDENCE"][0]) for each in outputs]
        return compare_rejecting(self.labels, self.targets(rows), found, rejected, sure)

    def loss(self, values: Tensor, targets: Tensor, class_weights: Tensor | None) -> Tensor:
        return cross_entropy(values, targets, class_weights)

    def figure_of(self, values: Tensor, targets: Tensor) -> tuple[str, float] | None:
        return accuracy_of(values, targets)

    def stack(self, targets: Sequence[Any]) -> Tensor:
        import torch

        return torch.tensor(targets, dtype=torch.long)

    def balanced_weights(self, targets: Sequence[Any]) -> Tensor:
        return weights_of_classes(np.array(targets), len(self.labels))


def cross_entropy(values: Tensor, targets: Tensor, class_weights: Tensor | None) -> Tensor:
    """Of values [n, labels] and the numbers of labels [n]; those that are IGNORED are left out."""
    from torch.nn import functional

    return functional.cross_entropy(values, targets, weight=class_weights, ignore_index=IGNORED)


def accuracy_of(values: Tensor, targets: Tensor) -> tuple[str, float] | None:
    """The part of the values [n, labels] whose largest is the target's; those that are IGNORED are left out."""
    counted = targets != IGNORED
    right = (values.argmax(dim=-1) == targets) & counted
    return "accuracy", float(right.sum()) / max(1, int(counted.sum()))


def weights_of_classes(numbers: npt.NDArray[Any], labels: int) -> Tensor:
    """Weights [labels] as scikit-learn's "balanced": n / (labels * count); targets below 0 are left out."""
    import torch

    counts = np.bincount(numbers[numbers >= 0], minlength=labels)
    return torch.tensor(counts.sum() / (labels * np.maximum(counts, 1)), dtype=torch.float32)
