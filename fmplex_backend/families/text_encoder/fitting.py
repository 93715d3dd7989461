"""Rows -> vectors while a task is fitted, as the server computes them. Imported only when fitting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fmplex_backend.decoders.decoder import TOKENS
from fmplex_backend.decoders.rows import Rows
from fmplex_backend.decoders.trainable import tensors_of
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.fitting import PooledFeatures
from fmplex_backend.families.text_encoder.encoders import CustomEncoder
from fmplex_backend.families.text_encoder.runtime import TextEncoderRuntime
from fmplex_backend.families.text_encoder.sections import PluginEncoder, Projection, Text
from fmplex_backend.families.text_encoder.tokenizer import NO_SPANS, Tokens


@dataclass(frozen=True, slots=True)
class TextExample:
    """A row as tokens."""

    windows: list[Tokens]
    words: list[int]  # where tokens are read: the position of each word's first token, -1 where it is cut off
    values: Tensor | None = None  # what an encoder with weights reads; the ids are placeholders then

    @property
    def length(self) -> int:
        """Tokens of its longest window."""
        return max(len(window.ids) for window in self.windows)

    @property
    def rows(self) -> int:
        """Vectors it gives: one, or one a word."""
        return len(self.words) if self.words else 1


class TextFittingInputs:
    """A task's encoder while the task is fitted; `module` is None for texts, whose tokens need no weights."""

    def __init__(
        self,
        encoder: Text | Projection | PluginEncoder,
        runtime: TextEncoderRuntime,
        tensors: Mapping[str, Tensor],
        seed: int,
    ) -> None:
        """Raises TaskProblem where the backbone cannot read what the encoder makes."""
        self.encoder, self.runtime = encoder, runtime
        self.module: CustomEncoder | None = None
        if isinstance(encoder, Text) and (found := encoder.problem(runtime.tokenizer)):
            field, problem, remedy = found  # before the first step, not when the task is loaded
            raise TaskProblem(f"{field}: {problem}. {remedy}")
        if not isinstance(encoder, Text):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.module = encoder.make(runtime.width)
            if tensors:
                self.module.load_state_dict(dict(tensors))
            self.module.to(runtime.device).requires_grad_(False)

    def examples(self, rows: Rows, *, reads: str) -> list[TextExample]:
        """Rows ready for `TextFeatures`; raises TaskProblem."""
        if isinstance(self.encoder, Text):
            return self._tokens(rows, self.encoder, by_word=reads == TOKENS)
        assert self.module is not None
        try:
            values = self.module.read(rows.items)
        except ValueError as error:
            raise TaskProblem(f"{rows.source} has {error}. Correct the rows, or the encoder") from None
        with torch.inference_mode():
            count = self.module(values[:1].to(self.runtime.device)).shape[1]
        placeholders = Tokens([self.runtime.placeholder] * count, [], NO_SPANS, False)
        return [TextExample([placeholders], [], value) for value in values]

    def observe(self, examples: Sequence[TextExample]) -> None:
        """Let the module see all training rows, before it is fitted for the first time."""
        if self.module is not None:
            self.module.observe(_values(examples).to(self.runtime.device))

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the module's weights, by their names in encoder.safetensors."""
        return {} if self.module is None else tensors_of(self.module)

    def features(self, bare: Any, model: Any, reads: str) -> TextFeatures:
        """A pooling over the bare backbone and over the model that is being fitted."""
        return TextFeatures(bare, model, reads, self.runtime.pad, self.runtime.device, self.module)

    def _tokens(self, rows: Rows, encoder: Text, *, by_word: bool) -> list[TextExample]:
        found = []
        for place, text in enumerate(rows.items):
            windows = self.runtime.tokenizer.encode(text, encoder, spans=by_word)
            found.append(TextExample(windows, first_tokens(windows[0], rows.words[place]) if by_word else []))
        return found


def first_tokens(window: Tokens, words: Sequence[tuple[int, int]]) -> list[int]:
    """For every word the position of the first token inside it, or -1."""
    places = list(zip(window.plain, window.offsets.tolist(), strict=True))
    return [
        next((place for place, (first, last) in places if start <= first < end and last > first), -1)
        for start, end in words
    ]


class TextFeatures(PooledFeatures[TextExample]):
    """See `PooledFeatures`; with TOKENS, a word's vector is its first token's.

    Args:
        pad: the padding token's id.
        encoder: the module that makes input embeddings, where rows are not texts.
    """

    def __init__(
        self, bare: Any, model: Any, reads: str, pad: int, device: torch.device, encoder: nn.Module | None = None
    ) -> None:
        super().__init__(bare, model, reads, device)
        self.pad, self.encoder = pad, encoder

    def through(self, model: Any, examples: Sequence[TextExample]) -> Tensor:
        if self.encoder is not None:
            vectors = self.encoder(_values(examples).to(self.device))  # [n, t, width]
            states = model(inputs_embeds=vectors).last_hidden_state  # [n, t, h]
            return self._pooled(states, torch.ones(states.shape[:2], dtype=torch.bool, device=self.device))
        windows = [window for each in examples for window in each.windows]
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
        if self.reads == TOKENS:
            return _word_states(states, examples)
        return self._joined(self._pooled(states, mask), [len(each.windows) for each in examples])

    def _pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        """[w, t, h] -> [w, h]."""
        if self.reads == "cls":
            return states[:, 0]
        if self.reads == "max":
            return states.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)
        weights = mask[..., None].to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)

    def _joined(self, pooled: Tensor, counts: list[int]) -> Tensor:
        """Windows [w, h] -> texts [n, h]."""
        if len(counts) == len(pooled):
            return pooled
        parts = torch.split(pooled, counts)
        return torch.stack([part.amax(dim=0) if self.reads == "max" else part.mean(dim=0) for part in parts])


def _word_states(states: Tensor, examples: Sequence[TextExample]) -> Tensor:
    """[n, t, h] -> [words, h]: each word's first token; the first token stands in for words that are cut off."""
    rows = [place for place, each in enumerate(examples) for _ in each.words]
    columns = [max(word, 0) for each in examples for word in each.words]
    return states[torch.tensor(rows, dtype=torch.long), torch.tensor(columns, dtype=torch.long)]


def _values(examples: Sequence[TextExample]) -> Tensor:
    """What an encoder with weights reads, of all rows: [n, ...]."""
    return torch.stack([each.values for each in examples if each.values is not None])
