"""What goes into a task: texts or rows of numbers, read from whatever they are kept in, and made ready for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fmplex import data, numeric, parts
from fmplex.backbone import Backbone
from fmplex.errors import TaskProblem
from fmplex.features import Encoded, first_tokens, values_of_rows
from fmplex.heads import tensors_of
from fmplex_backend.extensions.encoders import CustomEncoder, Encoder, make_encoder
from fmplex_backend.extensions.text import NO_SPANS, Tokens

Columns = str | Sequence[str]  # the text's, or those of the numbers


def takes(encoder: parts.Encoder) -> str:
    """TEXT or FEATURES."""
    if isinstance(encoder, parts.Text):
        return "TEXT"
    return "FEATURES" if isinstance(encoder, parts.Projection) else module_of(encoder, 1).takes


def module_of(encoder: parts.Projection | parts.PluginEncoder, width: int) -> CustomEncoder:
    """The encoder's module, its weights as they are before training."""
    return make_encoder(encoder.section(), "the encoder", width)


def rows_of(encoder: parts.Encoder, rows: Any, labels: Any, columns: Columns, label: str) -> data.Rows:
    """Examples for an encoder; raises TaskProblem."""
    if takes(encoder) == "TEXT":
        return data.rows_of(rows, labels, text=_one(columns), label=label)
    return numeric.number_rows(rows, labels, columns=_several(columns), label=label)


def values_of(encoder: parts.Encoder, rows: Any) -> list[Any]:
    """Texts, or rows of numbers, with no labels; raises TaskProblem."""
    return data.texts_of(rows) if takes(encoder) == "TEXT" else numeric.numbers_of(rows)


def probe(encoder: Encoder) -> list[Any]:
    """An input that any task of this encoder answers."""
    return ["is it there yet"] if encoder.takes == "TEXT" else [[0.0] * (encoder.features or 1)]


class Inputs:
    """A task's encoder while it is trained: `module` has weights where it is not the tokenizer's."""

    def __init__(self, encoder: parts.Encoder, backbone: Backbone, fitted: Mapping[str, Tensor], seed: int) -> None:
        self.encoder, self.backbone = encoder, backbone
        self.module: CustomEncoder | None = None
        if not isinstance(encoder, parts.Text):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.module = module_of(encoder, backbone.runtime.width)
            if fitted:
                self.module.load_state_dict(dict(fitted))
            self.module.to(backbone.runtime.device).requires_grad_(False)

    def encoded(self, rows: data.Rows, *, by_word: bool) -> list[Encoded]:
        """Rows ready for `Features`."""
        if isinstance(self.encoder, parts.Text):
            return self._tokens(rows, self.encoder, by_word)
        assert self.module is not None
        try:
            values = self.module.read(rows.texts)
        except ValueError as error:
            raise TaskProblem(f"{rows.source} has {error}. Correct the rows, or the encoder") from None
        with torch.inference_mode():
            count = self.module(values[:1].to(self.backbone.runtime.device)).shape[1]
        standing_in = Tokens([self.backbone.runtime.any_token] * count, [], NO_SPANS, False)
        return [Encoded([standing_in], [], value) for value in values]

    def observe(self, encoded: Sequence[Encoded]) -> None:
        """The training rows, before the first fitting."""
        if self.module is not None:
            self.module.observe(values_of_rows(encoded).to(self.backbone.runtime.device))

    def tensors(self) -> dict[str, Tensor]:
        """For encoder.safetensors."""
        return {} if self.module is None else tensors_of(self.module)

    def _tokens(self, rows: data.Rows, encoder: parts.Text, by_word: bool) -> list[Encoded]:
        tokenizer, section = self.backbone.runtime.tokenizer, encoder.section()
        found = []
        for place, text in enumerate(rows.texts):
            windows = tokenizer.encode(text, section, spans=by_word)
            found.append(Encoded(windows, first_tokens(windows[0], rows.words[place]) if by_word else []))
        return found


def _one(columns: Columns) -> str:
    if not isinstance(columns, str):
        raise TaskProblem(f"a text is one column, {list(columns)} are several. Name one with text=...")
    return columns


def _several(columns: Columns) -> list[str] | None:
    """None: every column but the label's."""
    return None if columns == "text" else [columns] if isinstance(columns, str) else list(columns)
