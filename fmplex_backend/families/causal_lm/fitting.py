"""Rows with answers -> sequences of tokens, and their loss while a task is fitted. Imported only when fitting.

A sequence is what a request's prompt is when it is served, and then the answer with the token that ends it. The loss is
of the answer's tokens alone; of a conversation's earlier answers too, where the template leaves them whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from fmplex_backend.decoders.rows import Rows, places
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.causal_lm import packing
from fmplex_backend.families.causal_lm.asking import Reader
from fmplex_backend.families.causal_lm.inputs import Conversation
from fmplex_backend.families.causal_lm.runtime import CausalLmRuntime
from fmplex_backend.families.causal_lm.sections import Generator, Prompt
from fmplex_backend.families.fitting import autocast

PACKS = {
    "cpu": 1024,
    "cuda": 8192,
}  # tokens that are computed together: their activations take memory until the backward pass
UNSAID = "\N{WHITE SQUARE}"  # an answer to find out what a template puts behind one


@dataclass(frozen=True, slots=True)
class Answered:
    """A row as tokens; the loss is of those at the places `answers`, none of which is the first."""

    tokens: list[int]
    answers: list[int]
    words: ClassVar[Sequence[int]] = ()

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.tokens)

    @property
    def counted(self) -> int:
        """Tokens of answers."""
        return len(self.answers)


class Answers:
    """A task while it is fitted: implements `SequenceInputs`."""

    learning_rate = 5e-4

    def __init__(self, encoder: Prompt, decoder: Generator, runtime: CausalLmRuntime) -> None:
        """Raises TaskRefused where the sections do not fit the model."""
        self.runtime, self.decoder = runtime, decoder
        vocabulary = runtime.model.config.get_text_config().vocab_size
        self.reader = Reader.of(runtime.tokenizer, encoder, decoder, runtime.max_length, vocabulary, Path("task.json"))
        self.end = self._end()

    def examples(self, rows: Rows) -> list[Answered]:
        if odd := [n for n, item in enumerate(rows.items) if isinstance(item, Conversation) and not self.reader.chat]:
            raise TaskProblem(
                f"{rows.source}, {places(odd)}: a conversation needs a chat template, and the task has none. Give one: "
                "Generator(chat_template=...)"
            )
        answered = enumerate(zip(rows.items, self.decoder.targets(rows), strict=True))
        found = [self._example(*row, f"{rows.source}, row {place}") for place, row in answered]
        if empty := [place for place, each in enumerate(found) if 0 in each.answers]:
            raise TaskProblem(
                f"{rows.source}, {places(empty)}: the prompt holds no tokens. Fill it in, or leave the rows out"
            )
        most = self.reader.max_length
        if long := [place for place, each in enumerate(found) if each.length > most]:
            raise TaskProblem(
                f"{rows.source}, {places(long)}: prompt and answer are {found[long[0]].length} tokens, the backbone "
                f"takes {most}. Shorten them, or leave the rows out"
            )
        return found

    def losses(self, model: Any, pack_tokens: int) -> PackedLosses:
        return PackedLosses(model, self.runtime.device, pack_tokens)

    def compared(self, rows: Rows) -> list[int]:
        return [place for place, item in enumerate(rows.items) if isinstance(item, str)]

    def compared_by(self, examples: Sequence[Answered]) -> list[Mapping[str, str]]:
        """The best token always; an answer that is longer than its row's is another one."""
        return [self._compared_by(each) for each in examples]

    def _compared_by(self, example: Answered) -> Mapping[str, str]:
        room = self.reader.max_length - example.length + example.counted
        most = min(1 + example.counted, room)
        least = min(self.reader.defaults.min_tokens, most)  # a request for fewer than the task's is refused
        return {"temperature": "0", "max_tokens": str(most), "min_tokens": str(least)}

    # -- tokens

    def _example(self, item: str | Conversation, answer: str, source: str) -> Answered:
        """Raises TaskProblem, naming `source`."""
        try:
            parts = [(self.reader.tokens(item), False)] if isinstance(item, str) else self._said(item)
        except Exception as error:  # Jinja's, or whatever a template raises on purpose
            reads = "chat template" if self.reader.chat else "tokenizer"
            raise TaskProblem(f"{source}: the {reads} does not take it: {error}") from None
        tokens: list[int] = []
        answers: list[int] = []
        own = [*self.reader.encoded(answer), *([] if self.end is None else [self.end])]
        for each, is_answer in (*parts, (own, True)):
            if is_answer:
                answers += range(len(tokens), len(tokens) + len(each))
            tokens += each
        return Answered(tokens, answers)

    def _said(self, item: Conversation) -> list[tuple[list[int], bool]]:
        """A prompt's tokens, cut where the answers in it begin and end; those are True."""
        messages, places = item.messages, [0]
        whole = self.reader.rendered(messages)
        for number, message in enumerate(messages):
            if message["role"] != "assistant" or not number:
                continue
            before = self.reader.rendered(messages[:number])
            end = "" if self.end is None else self.runtime.tokenizer.decode([self.end])
            if not whole.startswith(before + message["content"] + end):  # the template changes what was said before
                return [(self.reader.encoded(whole), False)]
            places += [len(before), len(before) + len(message["content"] + end)]
        cuts = pairwise([*places, len(whole)])
        return [(self.reader.encoded(whole[start:stop]), bool(number % 2)) for number, (start, stop) in enumerate(cuts)]

    def _end(self) -> int | None:
        """The token that ends an answer; None where the model has none."""
        ends = self.runtime.ends
        if self.reader.chat:
            asked: list[dict[str, str]] = [{"role": "user", "content": UNSAID}]
            both = [*asked, {"role": "assistant", "content": UNSAID}]
            rest = ""
            with suppress(Exception):  # a template may refuse what it is shown, with an error of any kind
                rest = self.reader.rendered(both, answered=True).rpartition(UNSAID)[2]
            if found := [token for token in self.reader.encoded(rest) if token in ends]:
                return found[0]
        own = self.runtime.tokenizer.eos_token_id
        return own if own in ends else min(ends, default=None)


class PackedLosses:
    """Sequences side by side in one row, each of which sees itself alone: implements `SequenceLosses`."""

    def __init__(self, model: Any, device: torch.device, pack_tokens: int) -> None:
        self.model, self.device = model, device
        self.pack_tokens = pack_tokens or PACKS.get(device.type, PACKS["cuda"])
        packing.put_attention(model)

    def losses(self, examples: Sequence[Answered], precision: str = "float32") -> Iterator[tuple[Tensor, int]]:
        for pack in packed(examples, self.pack_tokens):
            with autocast(precision, self.device):
                loss = self._loss(pack)
            yield loss, sum(each.counted for each in pack)

    def _loss(self, pack: Sequence[Answered]) -> Tensor:
        starts = list(accumulate((each.length for each in pack), initial=0))
        ids = torch.tensor([token for each in pack for token in each.tokens], device=self.device)
        positions = torch.cat([torch.arange(each.length) for each in pack]).to(self.device)
        told = [start + place for start, each in zip(starts, pack, strict=False) for place in each.answers]
        answers = torch.tensor(told, device=self.device)
        with packing.sequences(starts):
            logits = self.model(
                input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=answers - 1
            ).logits[0]  # [counted, vocabulary]
        return functional.cross_entropy(logits.float(), ids[answers], reduction="sum")


def packed(examples: Sequence[Answered], most: int) -> Iterator[list[Answered]]:
    """In their order, as many as fit into `most` tokens together; one that is longer stands alone."""
    own: list[Answered] = []
    total = 0
    for each in examples:
        if own and total + each.length > most:
            yield own
            own, total = [], 0
        own.append(each)
        total += each.length
    if own:
        yield own
