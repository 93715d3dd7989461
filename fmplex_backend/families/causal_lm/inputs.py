"""The tensors of language models: those of Triton's vLLM backend, so that its clients work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fmplex_backend.families.strings import StringInput
from fmplex_backend.interface import TensorSpec

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}  # as templates know them
Message = Mapping[str, Any]  # {"role": ..., "content": ...}, as chat templates take it


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said so far, where that is more than one turn of a user: roles and contents."""

    turns: tuple[tuple[str, str], ...]

    @property
    def messages(self) -> list[dict[str, str]]:
        """As chat templates take them."""
        return [{"role": role, "content": content} for role, content in self.turns]


def turns_of(cell: Any) -> list[tuple[str, str]] | None:
    """The messages of a cell, a list of them or that as JSON; None where it is something else.

    Raises ValueError where one of them has no role that there is, or no text.
    """
    if isinstance(cell, str) and cell.lstrip().startswith('[{"'):
        try:
            cell = json.loads(cell)
        except ValueError:
            return None
    if hasattr(cell, "tolist"):
        cell = cell.tolist()
    if not isinstance(cell, (list, tuple)) or not cell or not all(isinstance(each, Mapping) for each in cell):
        return None
    return [_turn(number, each) for number, each in enumerate(cell)]


def _turn(number: int, message: Message) -> tuple[str, str]:
    role, content = message.get("role"), message.get("content")
    if isinstance(content, (list, tuple)) and all(isinstance(each, Mapping) and "text" in each for each in content):
        content = "".join(str(each["text"]) for each in content)  # the parts that OpenAI's format allows
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"message {number} has the role {role!r}, which is none of {', '.join(ROLES)}. Correct it")
    if not isinstance(content, str):
        raise ValueError(f"message {number} has no text, but {content!r}. Give its content as a string")
    return ROLES[role], content


class PromptInput(StringInput):
    """text_input [1], a string. Rows to be fitted on may hold a conversation's messages in its place."""

    tensor = TensorSpec("text_input", "TYPE_STRING", (1,))
    default_column = "prompt"

    def item(self, cell: Any) -> tuple[str | Conversation, list[tuple[int, int]]]:
        turns = turns_of(cell)
        if turns is not None:
            alone = len(turns) == 1 and turns[0][0] == "user"
            return turns[0][1] if alone else Conversation(tuple(turns)), []
        if not isinstance(cell, str):
            raise ValueError(f"{cell!r} is not a text. Turn it into one, or leave the row out")
        return cell, []

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
