"""Texts -> vectors, as the server computes them, with gradients where an adapter is being fitted."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fmplex_backend.extensions.text import Tokens

BATCH = 64
WORDS = "tokens"  # the pooling of token decoders: a vector a word, its first token's


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as tokens: its windows, and for token tasks the position of each word's first token, -1 where cut off."""

    windows: list[Tokens]
    words: list[int]
    values: Tensor | None = None  # what an encoder with weights reads, in the place of the tokens' ids

    @property
    def tokens(self) -> int:
        """Of its longest window."""
        return max(len(window.ids) for window in self.windows)

    @property
    def rows(self) -> int:
        """Vectors it gives: one, or one a word."""
        return len(self.words) if self.words else 1


def values_of_rows(encoded: Sequence[Encoded]) -> Tensor:
    """What an encoder with weights reads, of all rows: [n, ...]."""
    return torch.stack([each.values for each in encoded if each.values is not None])


def first_tokens(window: Tokens, words: Sequence[tuple[int, int]]) -> list[int]:
    """For every word the position of the first token inside it, or -1."""
    places = list(zip(window.plain, window.offsets.tolist(), strict=True))
    return [
        next((place for place, (first, last) in places if start <= first < end and last > first), -1)
        for start, end in words
    ]


class Features:
    """A model and a way of pooling.

    Args:
        bare: the backbone.
        model: the backbone with the adapter that is being fitted; the same as `bare` where there is none.
        pooling: mean, cls or max over tokens, or WORDS.
        encoder: makes the vectors that go in where rows are no texts.
    """

    def __init__(
        self, bare: Any, model: Any, pooling: str, pad: int, device: torch.device, encoder: nn.Module | None = None
    ) -> None:
        self.bare, self.model, self.pooling, self.pad, self.device = bare, model, pooling, pad, device
        self.encoder = encoder

    def vectors(self, encoded: Sequence[Encoded]) -> Tensor:
        """[rows, h] through the model, with gradients."""
        return self._through(self.model, encoded)

    def every(self, encoded: Sequence[Encoded]) -> Tensor:
        """Any number of texts through the model."""
        return self._all(self.model, encoded)

    def fixed(self, encoded: Sequence[Encoded]) -> Tensor:
        """Any number of texts through the bare backbone."""
        return self._all(self.bare, encoded)

    def places(self, encoded: Sequence[Encoded]) -> list[Tensor]:
        """Of each text its rows in `fixed`."""
        ends = torch.tensor([each.rows for each in encoded]).cumsum(0)
        return [torch.arange(int(end) - each.rows, int(end)) for end, each in zip(ends, encoded, strict=True)]

    def precision(self, wanted: str) -> Any:
        """bfloat16 where it is asked for, or by itself on a GPU."""
        if wanted == "bfloat16" or (wanted == "auto" and self.device.type == "cuda"):
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _all(self, model: Any, encoded: Sequence[Encoded]) -> Tensor:
        """In batches of about equal lengths, put back into order."""
        order = sorted(range(len(encoded)), key=lambda place: encoded[place].tokens)
        parts: list[Tensor] = [torch.empty(0)] * len(encoded)
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                chosen = order[start : start + BATCH]
                values = self._through(model, [encoded[place] for place in chosen]).float()
                sizes = [encoded[place].rows for place in chosen]
                for place, part in zip(chosen, torch.split(values, sizes), strict=True):
                    parts[place] = part
        return torch.cat(parts)

    def _through(self, model: Any, encoded: Sequence[Encoded]) -> Tensor:
        if self.encoder is not None:
            vectors = self.encoder(values_of_rows(encoded).to(self.device))  # [n, t, width]
            states = model(inputs_embeds=vectors).last_hidden_state  # [n, t, h]
            return self._pooled(states, torch.ones(states.shape[:2], dtype=torch.bool, device=self.device))
        windows = [window for each in encoded for window in each.windows]
        longest = max(len(window.ids) for window in windows)
        lengths = torch.tensor([len(window.ids) for window in windows], device=self.device)
        ids = torch.full((len(windows), longest), self.pad, dtype=torch.long)  # [w, t]
        for place, window in enumerate(windows):
            ids[place, : len(window.ids)] = torch.tensor(window.ids)
        mask = torch.arange(longest, device=self.device) < lengths[:, None]  # [w, t]
        whole = bool((lengths == longest).all())
        states = model(
            input_ids=ids.to(self.device), attention_mask=None if whole else mask.long()
        ).last_hidden_state  # [w, t, h]
        if self.pooling == WORDS:
            rows = [place for place, each in enumerate(encoded) for _ in each.words]
            columns = [max(word, 0) for each in encoded for word in each.words]
            chosen: Tensor = states[torch.tensor(rows, dtype=torch.long), torch.tensor(columns, dtype=torch.long)]
            return chosen
        return self._joined(self._pooled(states, mask), [len(each.windows) for each in encoded])

    def _pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        """[w, t, h] -> [w, h]."""
        if self.pooling == "cls":
            return states[:, 0]
        if self.pooling == "max":
            return states.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)
        weights = mask[..., None].to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)

    def _joined(self, pooled: Tensor, counts: list[int]) -> Tensor:
        """Windows [w, h] -> texts [n, h]."""
        if len(counts) == len(pooled):
            return pooled
        parts = torch.split(pooled, counts)
        return torch.stack([part.amax(dim=0) if self.pooling == "max" else part.mean(dim=0) for part in parts])
