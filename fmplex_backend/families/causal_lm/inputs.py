"""The tensors of language models: those of Triton's vLLM backend, so that its clients work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fmplex_backend.families.causal_lm.conversation import Turn, turn_of
from fmplex_backend.families.strings import StringInput
from fmplex_backend.interface import TensorSpec

MESSAGE = {"role", "content"}  # fields of one


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said so far, where that is more than one turn of a user: roles and contents."""

    turns: tuple[tuple[str, str], ...]

    @property
    def messages(self) -> list[Turn]:
        """As chat templates take them."""
        return [{"role": role, "content": content} for role, content in self.turns]


def turns_of(cell: Any) -> list[tuple[str, str]] | None:
    """The messages of a cell, a list of them or that as JSON; None where it is something else, as other JSON is.

    Raises ValueError where one of them has no role that there is, or no text.
    """
    if isinstance(cell, str):
        cell = messages_in(cell)
    if hasattr(cell, "tolist"):
        cell = cell.tolist()
    if not isinstance(cell, (list, tuple)) or not cell or not all(isinstance(each, Mapping) for each in cell):
        return None
    turns = [turn_of(each, f"message[{number}]") for number, each in enumerate(cell)]
    return [(turn["role"], turn["content"]) for turn in turns]


def messages_in(text: str) -> list[Any] | None:
    """The messages that a text holds as JSON, as CSV files have them; None where it holds something else."""
    if not text.lstrip().startswith("["):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or not all(isinstance(each, dict) and each.keys() >= MESSAGE for each in found):
        return None
    return found


class PromptInput(StringInput):
    """text_input [1], a string. Rows to be fitted on may hold a conversation's messages in its place.

    A string is a text here, whatever is in it; `Generator.asked` takes JSON in a table's cells for messages.
    """

    tensor = TensorSpec("text_input", "TYPE_STRING", (1,))
    default_column = "prompt"

    def item(self, cell: Any) -> tuple[str | Conversation, list[tuple[int, int]]]:
        if isinstance(cell, str):
            return cell, []
        turns = turns_of(cell)
        if turns is not None:
            alone = len(turns) == 1 and turns[0][0] == "user"
            return turns[0][1] if alone else Conversation(tuple(turns)), []
        raise ValueError(f"{cell!r} is not a text. Turn it into one, or leave the row out")

    def show(self, item: Any) -> str:
        return super().show(item.turns[-1][1] if isinstance(item, Conversation) else item)

    def probe(self, size: int | None) -> str:
        return "Hello"


PROMPT = PromptInput()
STREAM = TensorSpec("stream", "TYPE_BOOL", (1,))
SAMPLING_PARAMETERS = TensorSpec("sampling_parameters", "TYPE_STRING", (1,))
EXCLUDE_INPUT = TensorSpec("exclude_input_in_output", "TYPE_BOOL", (1,))
MESSAGES = TensorSpec("messages", "TYPE_STRING", (1,))  # a conversation in the place of text_input; ours alone
# Its clients ask for outputs so. All but cumulative_logprob are there anyway.
RETURN_CUMULATIVE = TensorSpec("return_cumulative_logprob", "TYPE_BOOL", (1,))
RETURN_OTHERS = tuple(
    TensorSpec(f"return_{name}", "TYPE_BOOL", (1,))
    for name in ("finish_reason", "logprobs", "num_input_tokens", "num_output_tokens")
)

TEXT_OUTPUT = TensorSpec("text_output", "TYPE_STRING", (1,))
FINISH_REASON = TensorSpec("finish_reason", "TYPE_STRING", (1,))
OUTPUT_TOKENS = TensorSpec("num_output_tokens", "TYPE_UINT32", (1,))
LOGPROBS = TensorSpec("logprobs", "TYPE_STRING", (1,))
CUMULATIVE_LOGPROB = TensorSpec("cumulative_logprob", "TYPE_FP32", (1,))
