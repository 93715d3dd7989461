"""What a task answers over one protocol: compared with the other's, and written for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fmplex.client.results import Answers, as_json_value, best, result
from fmplex.client.wire import Interface
from fmplex_backend.decoders.results import Label, Labels, Raw, Result, Spans, Values, Vector, strings
from fmplex_backend.interface import USAGE

Tensor = npt.NDArray[Any]
# Floating point: a row's result depends in its last digits on the batch that it is computed in.
# Answers to one text in two batches: in bfloat16 they differ by up to 0.01.
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 0.02, 0.02


@dataclass(frozen=True, slots=True)
class Answer:
    """The output tensors for one item, without the batch dimension; or the error in their place."""

    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    error: str = ""

    @property
    def usage(self) -> tuple[int, int, int] | None:
        """[queue_us, compute_us, batch_items] of the request."""
        receipt = self.outputs.get(USAGE)
        return None if receipt is None else (int(receipt[0]), int(receipt[1]), int(receipt[2]))

    def result(self, task: Interface, item: Any) -> Result:
        """As the client library gives it."""
        outputs = {name: tensor for name, tensor in self.outputs.items() if name != USAGE}
        return result(task.kind, task.labels, item, outputs)


def agree(one: Answer, other: Answer) -> bool:
    """Whether two answers say the same; their receipts may differ."""
    if one.error or other.error or one.outputs.keys() != other.outputs.keys():
        return False
    return all(_close(one.outputs[name], other.outputs[name]) for name in one.outputs if name != USAGE)


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if np.issubdtype(one.dtype, np.floating):
        return bool(np.allclose(one, other, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE))
    return bool(np.array_equal(one, other))


def describe(answer: Answer, task: Interface, item: Any) -> str:
    """An answer in one line."""
    return f"error: {answer.error}" if answer.error else result_line(answer.result(task, item), top=1)


def text_in(found: Result) -> str | None:
    """The text of a result that is one, or of a part of it; None of other results."""
    text = getattr(found, "text", None)
    return text if isinstance(text, str) else None


def result_line(found: Result, top: int | None = 3) -> str:
    """A result in one line: of several labels the best `top` or all, of a vector its first numbers."""
    return f"{_line(found, top)} (text cut off)" if found.truncated else _line(found, top)


def _line(found: Result, top: int | None) -> str:
    if isinstance(found, Answers):
        lines = ((name, _line(own, top) if isinstance(own, Result) else f"error: {own}") for name, own in found.items())
        return "; ".join(f"{name}: {line}" for name, line in lines)
    if own_words := found.shown():
        return own_words
    if isinstance(found, Vector):
        return f"[{_numbers(found.vector, 3)}] {len(found.vector)} numbers, norm {np.linalg.norm(found.vector):.3f}"
    if isinstance(found, Spans):
        return ", ".join(f"{span.text} ({span.label})" for span in found.spans) or "nothing found"
    if isinstance(found, Values):
        return _numbers(found.values, 4)
    if isinstance(found, Raw):
        return ", ".join(_tensor(name, value) for name, value in found.outputs.items())
    if isinstance(found, Label):
        return _label(found, top)
    if isinstance(found, Labels):
        return _labels(found, top)
    if (text := text_in(found)) is not None:
        return " ".join(text.split())
    return ", ".join(f"{name} {value}" for name, value in as_json_value(found).items() if name != "truncated")


def _numbers(values: Tensor, most: int) -> str:
    return " ".join([f"{value:.3f}" for value in values[:most]] + (["..."] if len(values) > most else []))


def _label(found: Label, top: int | None) -> str:
    ranked = best(found.scores)
    if not found.label:
        return f"no label (best: {_with_scores(ranked, top)})"
    if found.label not in ranked:  # a task that does not tell the names of its scores
        ranked = {found.label: max(ranked.values())}
    return _with_scores({found.label: ranked.pop(found.label), **ranked}, top)


def _labels(found: Labels, top: int | None) -> str:
    """Every label that was given, however many; where there is none, or all are asked for, also the others."""
    ranked = best(found.scores)
    if not set(found.labels) <= set(ranked):
        return _with_scores(dict(zip(found.labels, ranked.values(), strict=False)))
    given = _with_scores({label: ranked.pop(label) for label in found.labels})
    if not given:
        return "no label over its threshold" + ("" if top == 1 else f" (best: {_with_scores(ranked, top)})")
    return f"{given} (below: {_with_scores(ranked)})" if top is None and ranked else given


def _with_scores(scores: Mapping[str, float], most: int | None = None) -> str:
    return ", ".join(f"{label} {score:.3f}" for label, score in list(scores.items())[:most])


def _tensor(name: str, value: Tensor) -> str:
    return f"{name} {', '.join(strings(value))}" if value.dtype.kind in "OS" else f"{name} {list(value.shape)}"
