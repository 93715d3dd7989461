"""Held-out figures: accuracy, F1 over classes, labels or entities, and rank correlation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from demo_data import Example
from torch import Tensor


def accuracy(found: Sequence[int], wanted: Sequence[int]) -> float:
    """The part of the rows that got their class."""
    return sum(left == right for left, right in zip(found, wanted, strict=True)) / len(wanted)


def f1(hits: int, found: int, wanted: int) -> float:
    """The harmonic mean of precision (hits of `found`) and recall (hits of `wanted`)."""
    return 2 * hits / (found + wanted) if found + wanted else 0.0


def macro_f1(found: Sequence[int], wanted: Sequence[int]) -> float:
    """F1 of every class that occurs, averaged with equal weights."""
    pairs = list(zip(found, wanted, strict=True))
    scores = []
    for label in sorted(set(wanted)):
        hits = sum(left == right == label for left, right in pairs)
        scores.append(f1(hits, list(found).count(label), list(wanted).count(label)))
    return sum(scores) / len(scores)


def micro_f1(found: Tensor, wanted: Tensor) -> float:
    """F1 over all (text, label) decisions together; both are 0/1."""
    return f1(int((found * wanted).sum()), int(found.sum()), int(wanted.sum()))


def entity_spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(kind, first word, word after the last) of every entity; an I- that continues none begins one."""
    spans = set()
    kind, start = "", 0
    for at, tag in enumerate([*tags, "O"]):
        if kind and tag != f"I-{kind}":
            spans.add((kind, start, at))
            kind = ""
        if not kind and tag != "O":
            kind, start = tag[2:], at
    return spans


def entity_f1(found: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> float:
    """F1 over entities of all sentences together: kind and both ends have to agree."""
    hits = total_found = total_wanted = 0
    for left, right in zip(found, wanted, strict=True):
        here, there = entity_spans(left), entity_spans(right)
        hits += len(here & there)
        total_found += len(here)
        total_wanted += len(there)
    return f1(hits, total_found, total_wanted)


def ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    shared: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return shared


def spearman(left: Sequence[float], right: Sequence[float]) -> float:
    """Correlation of ranks."""
    return float(np.corrcoef(ranks(left), ranks(right))[0, 1])


def decided(scores: Tensor, threshold: float) -> Tensor:
    """Which labels a multi-label head gives: the sigmoid of their score reaches the threshold."""
    return (torch.sigmoid(scores) >= threshold).to(torch.float32)


def _tag_rows(numbers: Sequence[int], labels: Sequence[str], examples: Sequence[Example]) -> list[list[str]]:
    """The label names of a flat run of words, cut into the examples' sentences."""
    rows, at = [], 0
    for example in examples:
        rows.append([labels[number] for number in numbers[at : at + len(example.words)]])
        at += len(example.words)
    return rows


def figures(
    decoder: str, labels: Sequence[str], threshold: float, scores: Tensor, examples: Sequence[Example]
) -> dict[str, float]:
    """The held-out figures of one kind of decoder, to four places; `scores` has a row per text or word."""
    wanted = [target for example in examples for target in example.target]
    if decoder == "multi-label":
        given = decided(scores, threshold)
        truth = torch.tensor(wanted, dtype=torch.float32).view_as(given)
        exact = float((given == truth).all(dim=1).float().mean())
        found = {"micro_f1": micro_f1(given, truth), "exact_match": exact}
    else:
        best = scores.argmax(dim=1).tolist()
        found = {"accuracy": accuracy(best, wanted), "macro_f1": macro_f1(best, wanted)}
        if decoder == "token-classification":
            tags = [_tag_rows(numbers, labels, examples) for numbers in (best, wanted)]
            found = {"entity_f1": entity_f1(tags[0], tags[1]), "token_accuracy": found["accuracy"]}
    return {name: round(value, 4) for name, value in found.items()}
