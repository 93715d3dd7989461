"""Evaluation on labelled rows. scikit-learn is imported only when a task is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fmplex_backend.decoders.rows import IGNORED

DIGITS = 4


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures by name, the most telling one first; confusion[i][j] counts rows of label i that were given label j."""

    figures: dict[str, float]
    rows: int
    labels: tuple[str, ...] = ()
    confusion: list[list[int]] = field(default_factory=list)

    @property
    def headline(self) -> str:
        """The name of the first figure."""
        return next(iter(self.figures))

    def __getitem__(self, name: str) -> float:
        return self.figures[name]


def compare_rejecting(
    labels: Sequence[str], wanted: Sequence[int], found: Sequence[int], rejected: Sequence[bool], sure: Sequence[float]
) -> Evaluation:
    """Those of `compare_labels` over all in-scope rows, whether rejected or not, and how well rows are rejected.

    Args:
        wanted: IGNORED for rows that are out of scope.
        found: the label with the highest score. sure: the confidence that a row is in scope.
    """
    from sklearn.metrics import roc_auc_score

    inside = [place for place, number in enumerate(wanted) if number != IGNORED]
    accepted = [place for place in inside if not rejected[place]]
    right = sum(wanted[place] == found[place] for place in accepted)
    plain = compare_labels(labels, [wanted[place] for place in inside], [found[place] for place in inside])
    more = {"rejected": 1 - len(accepted) / max(1, len(inside)), "accepted_accuracy": right / max(1, len(accepted))}
    outside = [place for place, number in enumerate(wanted) if number == IGNORED]
    if outside:
        more["out_of_scope_rejected"] = sum(rejected[place] for place in outside) / len(outside)
    if outside and inside:
        more["out_of_scope_auroc"] = float(roc_auc_score([number != IGNORED for number in wanted], sure))
    figures = plain.figures | {name: round(value, DIGITS) for name, value in more.items()}
    return Evaluation(figures, len(wanted), tuple(labels), plain.confusion)


def compare_labels(labels: Sequence[str], wanted: Sequence[int], found: Sequence[int]) -> Evaluation:
    """Accuracy, macro F1 and confusion matrix, of the indices of the true (`wanted`) and predicted (`found`) labels."""
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

    figures = {
        "accuracy": round(float(accuracy_score(wanted, found)), DIGITS),
        "macro_f1": round(float(f1_score(wanted, found, average="macro", labels=sorted(set(wanted)))), DIGITS),
    }
    matrix = confusion_matrix(wanted, found, labels=range(len(labels))).tolist()
    return Evaluation(figures, len(wanted), tuple(labels), matrix)
