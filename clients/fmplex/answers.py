"""A task's answer: read from a response, compared across protocols, and written for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fmplex_backend.interface import EMBEDDING, LABEL, OFFSETS, SCORES, TRUNCATED

Tensor = npt.NDArray[Any]
USAGE = "usage"
OUTSIDE = "O"
# A row's numbers move in their last digits with the batch that it happened to be computed in.
RELATIVE, ABSOLUTE = 1e-3, 1e-4


@dataclass(frozen=True, slots=True)
class Answer:
    """What a task said to one text (outputs without the batch), or why it said nothing."""

    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    error: str = ""

    @property
    def usage(self) -> tuple[int, int, int] | None:
        """[queue_us, compute_us, batch_items] of the request."""
        receipt = self.outputs.get(USAGE)
        return None if receipt is None else (int(receipt[0]), int(receipt[1]), int(receipt[2]))


def agree(one: Answer, other: Answer) -> bool:
    """Whether two answers say the same; their receipts may differ."""
    if one.error or other.error or one.outputs.keys() != other.outputs.keys():
        return False
    return all(_same(one.outputs[name], other.outputs[name]) for name in one.outputs if name != USAGE)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if np.issubdtype(one.dtype, np.floating):
        return bool(np.allclose(one, other, rtol=RELATIVE, atol=ABSOLUTE))
    return bool(np.array_equal(one, other))


def describe(answer: Answer, text: str) -> str:
    """One or a few lines that say what the answer is."""
    if answer.error:
        return f"error: {answer.error}"
    outputs = answer.outputs
    if EMBEDDING.name in outputs:
        told = _embedding(outputs[EMBEDDING.name])
    elif OFFSETS.name in outputs:
        told = ", ".join(f"{piece} ({label})" for piece, label in spans(outputs, text)) or "nothing found"
    elif LABEL.name in outputs:
        told = _labels(outputs)
    elif SCORES.name in outputs:
        told = " ".join(f"{score:.3f}" for score in outputs[SCORES.name][:4])
    else:
        told = ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items() if name != USAGE)
    truncated = outputs.get(TRUNCATED.name)
    return f"{told} (text cut off)" if truncated is not None and truncated.any() else told


def _embedding(vector: Tensor) -> str:
    first = " ".join(f"{value:.3f}" for value in vector[:3])
    return f"[{first} ...] {len(vector)} numbers, norm {np.linalg.norm(vector):.3f}"


def _labels(outputs: Mapping[str, Tensor]) -> str:
    """Best first, each with its score; a task of several labels pads with ""."""
    labels = [label for label in strings(outputs[LABEL.name]) if label]
    if SCORES.name not in outputs:
        return ", ".join(labels)
    scores = np.sort(outputs[SCORES.name])[::-1]
    told = (f"{label} {score:.3f}" for label, score in zip(labels, scores, strict=False))
    return ", ".join(told) or "no label over its threshold"


def spans(outputs: Mapping[str, Tensor], text: str) -> list[tuple[str, str]]:
    """The pieces of `text` that carry a label, with it; B-/I- tokens and parts of a word joined."""
    found: list[tuple[int, int, str]] = []
    for label, (start, end) in zip(strings(outputs[LABEL.name]), outputs[OFFSETS.name].tolist(), strict=True):
        kind = label.removeprefix("B-").removeprefix("I-")
        if label in (OUTSIDE, "") or start == end:
            continue
        if found and found[-1][2] == kind and _continues(label, text[found[-1][1] : start]):
            found[-1] = (found[-1][0], end, kind)
        else:
            found.append((start, end, kind))
    return [(text[start:end], kind) for start, end, kind in found]


def _continues(label: str, between: str) -> bool:
    return between == "" or (not label.startswith("B-") and between.isspace())


def strings(tensor: Tensor) -> list[str]:
    """The strings of a BYTES tensor."""
    return [item.decode() if isinstance(item, bytes) else str(item) for item in tensor.ravel().tolist()]
