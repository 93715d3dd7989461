"""A label for every token: TOKEN_SCORES (shown as SCORES, [T, C]), LABEL ([T]) and OFFSETS ([T, 2], characters)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic.dataclasses import dataclass

from fmplex_backend.decoders.agreement import Agreed, equal
from fmplex_backend.decoders.classification import accuracy_of, cross_entropy, weights_of_classes
from fmplex_backend.decoders.decoder import Encoded, Labelled, LoadedDecoder, Outputs
from fmplex_backend.decoders.head import HeadDecoder, softmax
from fmplex_backend.decoders.results import Result, Span, Spans, strings
from fmplex_backend.decoders.rows import Rows, label_number, tags_of
from fmplex_backend.errors import TaskProblem
from fmplex_backend.interface import LABEL, OFFSETS, TOKEN_SCORES
from fmplex_backend.section import CHECKED

if TYPE_CHECKING:
    from torch import Tensor

    from fmplex_backend.decoders.figures import Evaluation

OUTSIDE = "O"


@dataclass(config=CHECKED, frozen=True)
class TokenClassifier(HeadDecoder, Labelled):
    """A label for every token, e.g. BIO tags of names; O comes first."""

    kind: Literal["token-classification"] = field(default="token-classification", kw_only=True, repr=False)
    gives = (TOKEN_SCORES, LABEL, OFFSETS)
    by_token = True

    def load(self, directory: Path, hidden: int) -> LoadedDecoder:
        head = self.load_head(directory, hidden, len(self.labels))
        names = np.array(self.labels, dtype=np.object_)

        def decode(encoded: Encoded) -> dict[str, npt.NDArray[Any]]:
            """A row per token; shorter texts end in empty labels, zero scores and offsets of -1."""
            items, longest = len(encoded.tokens), max(len(tokens) for tokens in encoded.tokens)
            scores = np.zeros((items, longest, len(names)), dtype=np.float32)
            labels = np.full((items, longest), "", dtype=np.object_)
            offsets = np.full((items, longest, 2), -1, dtype=np.int32)
            for item, (tokens, spans) in enumerate(zip(encoded.tokens, encoded.offsets, strict=True)):
                if len(tokens):
                    scores[item, : len(tokens)] = softmax(head(tokens))
                    labels[item, : len(tokens)] = names[scores[item, : len(tokens)].argmax(axis=-1)]
                    offsets[item, : len(tokens)] = spans
            return {"TOKEN_SCORES": scores, "LABEL": labels, "OFFSETS": offsets}

        return LoadedDecoder(self.reads, self.sizes(directory, hidden), decode)

    def sizes(self, directory: Path, hidden: int | None) -> dict[str, int | None]:
        return {"TOKEN_SCORES": len(self.labels), "LABEL": None, "OFFSETS": 2}

    @classmethod
    def result(cls, labels: Sequence[str], item: Any, outputs: Outputs, truncated: bool) -> Result:
        return Spans(tuple(spans_of(item, outputs)), truncated)

    @classmethod
    def agreed(cls, one: Outputs, other: Outputs, tolerance: float) -> Agreed:
        """The same label for every token."""
        return equal(one["LABEL"], other["LABEL"])

    def labels_in(self, rows: Rows) -> set[str]:
        return {tag for value in rows.labels for tag in tags_of(value)}

    def targets(self, rows: Rows) -> list[list[int]]:
        if not rows.words:
            raise TaskProblem(
                f"{rows.source}: tags belong to words. Give each text as a list of words, and a tag for each word"
            )
        return [self._tag_numbers(tags_of(value), place, rows) for place, value in enumerate(rows.labels)]

    def _tag_numbers(self, tags: list[str], place: int, rows: Rows) -> list[int]:
        if len(tags) != len(rows.words[place]):
            raise TaskProblem(
                f"{rows.source}, row {place}: {len(rows.words[place])} words and {len(tags)} tags. Give one tag a word"
            )
        return [label_number(self.labels, tag, place, rows) for tag in tags]

    def loss(self, values: Tensor, targets: Tensor, class_weights: Tensor | None) -> Tensor:
        return cross_entropy(values, targets, class_weights)

    def figure_of(self, values: Tensor, targets: Tensor) -> tuple[str, float] | None:
        return accuracy_of(values, targets)

    def stack(self, targets: Sequence[Any]) -> Tensor:
        """The tags of all words, text after text."""
        import torch

        return torch.tensor([number for row in targets for number in row], dtype=torch.long)

    def balanced_weights(self, targets: Sequence[Any]) -> Tensor:
        return weights_of_classes(np.array([number for row in targets for number in row]), len(self.labels))

    def figures(self, rows: Rows, outputs: Sequence[Outputs]) -> Evaluation:
        """A word's tag is its first token's; a word beyond the cut-off counts as O."""
        from fmplex_backend.decoders.figures import DIGITS, Evaluation

        found = [word_tags(words, each) for words, each in zip(rows.words, outputs, strict=True)]
        wanted = [[self.labels[number] for number in row] for row in self.targets(rows)]
        right = sum(a == b for one, two in zip(wanted, found, strict=True) for a, b in zip(one, two, strict=True))
        figures = {"accuracy": right / max(1, sum(map(len, wanted)))}
        if any(label.startswith(("B-", "I-")) for label in self.labels):
            figures = {"entity_f1": entity_f1(found, wanted)} | figures
        return Evaluation(
            {name: round(value, DIGITS) for name, value in figures.items()}, len(rows), tuple(self.labels)
        )


def spans_of(text: str, outputs: Outputs) -> list[Span]:
    """Tags of tokens -> spans of the text: B- begins a span, I- of the same kind continues it."""
    found: list[Span] = []
    tags, offsets = strings(outputs["LABEL"]), outputs["OFFSETS"].tolist()
    best = outputs["SCORES"].max(axis=-1) if len(tags) else []
    for tag, (start, end), score in zip(tags, offsets, best, strict=True):
        kind = tag.removeprefix("B-").removeprefix("I-")
        if tag in ("", OUTSIDE) or start >= end:
            continue
        last = found[-1] if found else None
        between = text[last.end : start] if last else ""
        joins = between == "" or (not tag.startswith("B-") and between.isspace())
        if last and last.label == kind and joins:
            lowest = min(last.score, float(score))
            found[-1] = Span(text[last.start : end], kind, last.start, end, lowest)
        else:
            found.append(Span(text[start:end], kind, start, end, float(score)))
    return found


def word_tags(words: Sequence[tuple[int, int]], outputs: Outputs) -> list[str]:
    """The tag of the first token inside each word."""
    tokens = list(zip(strings(outputs["LABEL"]), outputs["OFFSETS"].tolist(), strict=True))
    return [
        next((tag for tag, (first, last) in tokens if tag and start <= first < end and last > first), OUTSIDE)
        for start, end in words
    ]


def entity_spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(kind, first word, word after the last) of every entity, counted as CoNLL does: a stray I- begins one."""
    spans = set()
    kind, start = "", 0
    for at, tag in enumerate([*tags, OUTSIDE]):
        if kind and tag != f"I-{kind}":
            spans.add((kind, start, at))
            kind = ""
        if not kind and tag != OUTSIDE:
            kind, start = tag[2:], at
    return spans


def entity_f1(found: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> float:
    """F1 over the entities of all texts together: kind and both ends have to agree."""
    hits = total = 0
    for one, two in zip(found, wanted, strict=True):
        predicted, true = entity_spans(one), entity_spans(two)
        hits += len(predicted & true)
        total += len(predicted) + len(true)
    return 2 * hits / total if total else 0.0
