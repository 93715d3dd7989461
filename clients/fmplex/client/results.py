"""Typed results of a task, one for each item; `Task.predict` and `Client.predict` return the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy.typing as npt

from fmplex_backend import families
from fmplex_backend.decoders import Decoder
from fmplex_backend.decoders.results import Label, Labels, Result, Spans, Values
from fmplex_backend.errors import ServerProblem, TaskProblem
from fmplex_backend.interface import TRUNCATED

Tensors = Mapping[str, npt.NDArray[Any]]


class Answers(dict[str, "Result | ServerProblem"], Result):
    """By the tasks' names, in the group's order. A task that has failed has its ServerProblem there, not raised: the
    one that asking it alone would have raised.
    """

    def __init__(self, found: Mapping[str, Result | ServerProblem]) -> None:
        super().__init__(found)
        self.truncated = any(result.truncated for result in found.values() if isinstance(result, Result))

    @property
    def problems(self) -> dict[str, ServerProblem]:
        """Those of the tasks that have failed."""
        return {name: result for name, result in self.items() if isinstance(result, ServerProblem)}


def joined(kind: str, parts: Sequence[Tensors]) -> dict[str, npt.NDArray[Any]]:
    """One item's output tensors of a whole reply, of those of its parts."""
    return dict(families.decoders().get(kind, Decoder).joined(parts))


def result(kind: str, labels: Sequence[str], item: Any, outputs: Tensors) -> Result:
    """The result of one item, whose output tensors have no batch dimension. Without labels, scores are named 0, 1, ...

    It is Raw where the decoder kind is not known here, or outputs of it are missing: an entry need not show all of
    them, and a part of a reply may hold some.
    """
    own = {name: value for name, value in outputs.items() if name != TRUNCATED.name}
    truncated = bool(outputs[TRUNCATED.name].any()) if TRUNCATED.name in outputs else False
    decoder = families.decoders().get(kind, Decoder)
    complete = all(spec.client_name in own for spec in decoder.gives)
    return (decoder if complete else Decoder).result(labels, item, own, truncated)


def kind_of(outputs: Sequence[str]) -> str:
    """The decoder's kind by the names of a task's outputs, where its configuration does not say it."""
    found = families.decoder_giving(outputs)
    return "plugin" if found is None else families.kind_of(found)


def as_json_value(result: Result) -> dict[str, Any]:
    """A result as a JSON object; arrays become lists, and what a task does not say is left out.

    Of a group it has an object for each task; that of one that failed has its `error`.
    """
    if isinstance(result, Answers):
        return {
            name: as_json_value(own) if isinstance(own, Result) else {"error": str(own)} for name, own in result.items()
        }
    fields: Any = result  # results of every kind are dataclasses
    document: dict[str, Any] = json.loads(json.dumps(asdict(fields), default=lambda value: value.tolist()))
    return {name: value for name, value in document.items() if value is not None}


def best(scores: Mapping[str, float], most: int | None = None) -> dict[str, float]:
    """The highest scores, in order; all of them for None."""
    return dict(sorted(scores.items(), key=lambda item: -item[1])[:most])


def above(result: Result, threshold: float) -> Result:
    """Without what is scored below: a label becomes "", labels and spans go. Raises TaskProblem without scores.

    Of a group this is done to the tasks that have scores.
    """
    if isinstance(result, Answers):
        return Answers({name: _above_if_scored(own, threshold) for name, own in result.items()})
    if isinstance(result, Label):
        kept = result.scores.get(result.label, max(result.scores.values(), default=0.0)) >= threshold
        return result if kept else replace(result, label="")
    if isinstance(result, Labels):
        return replace(result, labels=tuple(name for name, score in best(result.scores).items() if score >= threshold))
    if isinstance(result, Spans):
        return replace(result, spans=tuple(span for span in result.spans if span.score >= threshold))
    raise TaskProblem("the task's answers have no labels with scores. Leave --threshold out")


def _above_if_scored(own: Result | ServerProblem, threshold: float) -> Result | ServerProblem:
    return above(own, threshold) if isinstance(own, (Label, Labels, Spans)) else own


def fields(result: Result, top: int | None = 0) -> dict[str, Any]:
    """A result by columns: of a label also its score, of the scores by label the best `top`, None for all.

    Of a group the columns are its tasks', as `sentiment.label`; each task has `sentiment.error`, too.
    """
    if isinstance(result, Answers):
        columns: dict[str, Any] = {}
        for name, own in result.items():
            found = fields(own, top) if isinstance(own, Result) else {}
            columns |= {f"{name}.{column}": value for column, value in found.items()}
            columns[f"{name}.error"] = "" if isinstance(own, Result) else str(own)
        return columns
    document = as_json_value(result)
    if isinstance(result, (Label, Labels)):
        scores = document.pop("scores")
        if isinstance(result, Label):
            document["score"] = scores.get(result.label, max(scores.values(), default=None))
        if top != 0:
            document["scores"] = best(scores, top)
    elif isinstance(result, Values) and len(result.values) == 1:
        document = {"value": document["values"][0], **{k: v for k, v in document.items() if k != "values"}}
    return {name: value for name, value in document.items() if name != "truncated"} | {"truncated": result.truncated}
