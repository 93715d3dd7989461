"""One step of many sequences: the tokens of each, one after the other, as one packed pass takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from fmplex_backend.adapters.peft import Adapter
from fmplex_backend.families.causal_lm.attention import Span
from fmplex_backend.families.causal_lm.sequence import Sequence as Answer
from fmplex_backend.types import PassShape, Request, Work


@dataclass(frozen=True, slots=True)
class Step:
    """Of a pass: `ids`, `adapters` have an entry for each of its tokens, the others one for each sequence."""

    requests: Sequence[Request]
    ids: torch.Tensor  # [tokens]
    spans: Sequence[Span]
    adapters: Sequence[Adapter | None]

    @classmethod
    def of(cls, requests: Sequence[Request], blocks: Callable[[Request], Sequence[int]]) -> Step:
        """The next tokens of each sequence.

        Args:
            requests: with their sequences, in the order in which the adapters' products take them.
            blocks: in which a sequence keeps its keys and values.
        """
        answers: list[Answer] = [request.prepared for request in requests]
        steps = [answer.step for answer in answers]
        tokens = [answer.tokens[place] for answer, step in zip(answers, steps, strict=True) for place in step]
        return cls(
            requests,
            torch.tensor(tokens),
            [Span(len(step), step.stop, blocks(each)) for each, step in zip(requests, steps, strict=True)],
            [each.extensions.adapter for each, step in zip(requests, steps, strict=True) for _ in step],
        )

    @property
    def choosing(self) -> list[int]:
        """The positions of the sequences that choose a token after this step: of the others there is more to read."""
        return [number for number, request in enumerate(self.requests) if request.prepared.chooses]

    @property
    def ends(self) -> list[int]:
        """The position of each sequence's last token among those of the pass."""
        return [end - 1 for end in accumulate(span.new for span in self.spans)]

    @property
    def portions(self) -> list[tuple[Request, Work]]:
        """What each sequence has of the pass's work."""
        return [
            (request, Work(1, span.new, span.new * span.context))
            for request, span in zip(self.requests, self.spans, strict=True)
        ]

    @property
    def shape(self) -> PassShape:
        """What the cost of the pass depends on."""
        return shape_of(self.spans, len({id(adapter) for adapter in self.adapters if adapter is not None}))


def shape_of(spans: Sequence[Span], adapter_groups: int) -> PassShape:
    """With the mean context in the place of the longest row: tokens times that is the work of attention."""
    tokens = sum(span.new for span in spans)
    return PassShape(tokens, -(-sum(span.new * span.context for span in spans) // tokens), adapter_groups)
