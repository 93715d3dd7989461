"""The tokens of several sequences, as one packed pass takes them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from fmplex_backend.families.causal_lm.attention import Span
from fmplex_backend.families.causal_lm.step import Step, shape_of
from fmplex_backend.types import PassShape, Work


def request(tokens: list[int], start: int, adapter: Any = None, stop: int | None = None) -> Any:
    """Of a sequence whose next step computes its tokens from `start` on."""
    step = range(start, len(tokens) if stop is None else stop)
    sequence = SimpleNamespace(tokens=tokens, step=step, chooses=step.stop == len(tokens))
    return SimpleNamespace(prepared=sequence, extensions=SimpleNamespace(adapter=adapter))


def test_a_prompt_in_parts_beside_a_next_token() -> None:
    adapter = object()
    prompt, answer = request([5, 6, 7, 8], 0, adapter, stop=3), request([1, 2, 3], 2)
    blocks = {id(prompt): [4], id(answer): [9]}
    step = Step.of([prompt, answer], lambda each: blocks[id(each)])
    assert step.ids.tolist() == [5, 6, 7, 3]
    assert step.spans == [Span(3, 3, [4]), Span(1, 3, [9])]
    assert step.adapters == [adapter, adapter, adapter, None]
    assert (step.choosing, step.ends) == ([1], [2, 3])
    assert step.portions == [(prompt, Work(1, 3, 9)), (answer, Work(1, 1, 3))]
    assert step.shape == PassShape(4, 3, 1)


def test_the_mean_context_is_rounded_up() -> None:
    assert shape_of([Span(1, 10, ()), Span(2, 4, ())], 0) == PassShape(3, 6, 0)
