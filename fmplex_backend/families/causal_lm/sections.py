"""A generating task's sections of task.json: how a text becomes a prompt, and how the answer is made."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from fmplex_backend.decoders.decoder import Decoder, Outputs
from fmplex_backend.decoders.results import Result, strings
from fmplex_backend.decoders.rows import Rows, places
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.causal_lm.inputs import (
    CUMULATIVE_LOGPROB,
    FINISH_REASON,
    LOGPROBS,
    OUTPUT_TOKENS,
    PROMPT,
    TEXT_OUTPUT,
    messages_in,
    turns_of,
)
from fmplex_backend.families.causal_lm.sampling import FIELDS, Sampling
from fmplex_backend.families.spec import Input
from fmplex_backend.interface import INPUT_TOKENS
from fmplex_backend.section import CHECKED

if TYPE_CHECKING:
    from fmplex_backend.decoders.figures import Evaluation

MAX_LOSS = 100.0  # of a token; its exponential is still a number that JSON has
MAX_TEMPLATE = 65_536  # characters; they are tokenised with every text


@dataclass(config=CHECKED, frozen=True)
class Prompt:
    """The text as the client sends it, in a template.

    Args:
        template: e.g. "Summarise: {text}".
    """

    template: Annotated[str, Field(max_length=MAX_TEMPLATE)] = "{text}"

    kind: Literal["prompt"] = field(default="prompt", kw_only=True, repr=False)
    learns: ClassVar[Literal["nothing", "optionally", "always"]] = "nothing"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.template.count("{text}") != 1:
            raise ValueError(f"template must hold {{text}} once, {self.template!r} does not")
        return self

    def reads(self) -> Input:
        return PROMPT

    def size(self) -> int | None:
        return 1


@plain_dataclass(frozen=True, slots=True)
class Generated(Result):
    """An answer, or a part of one. `finish_reason` is "stop" or "length", and "" for a part that is not the last.

    `logprobs` is None where none were asked for; else of each token its and the best ones' logarithmic probabilities,
    as Triton's vLLM backend tells them.
    """

    text: str
    finish_reason: str
    input_tokens: int
    output_tokens: int
    logprobs: Any = None
    truncated: bool = False


@dataclass(config=CHECKED, frozen=True)
class Generator(Sampling, Decoder):
    """Generates an answer. What `Sampling` has are the task's defaults, which a request may override.

    Args:
        chat: whether the text is a user's turn in the model's chat template; None: where the model has one.
        system: what the conversation begins with; needs a chat template.
        chat_template: another one than the model's, in Jinja as transformers takes it.
    """

    chat: bool | None = None
    system: Annotated[str, Field(max_length=MAX_TEMPLATE)] = ""
    chat_template: Annotated[str, Field(max_length=MAX_TEMPLATE)] = ""

    kind: Literal["generator"] = field(default="generator", kw_only=True, repr=False)
    gives = (TEXT_OUTPUT, FINISH_REASON, INPUT_TOKENS, OUTPUT_TOKENS, LOGPROBS)
    may_give = (CUMULATIVE_LOGPROB,)  # 0 unless asked for: JSON has no NaN
    telling = (INPUT_TOKENS,)  # answers may be random, and differ with the dtype
    learns = "sequences"
    label_column = "completion"
    whole_column = "messages"
    needs_weights = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.chat is False and (self.system or self.chat_template):
            raise ValueError("system and chat_template need a chat: leave chat at its default, or say true")
        if self.min_tokens > self.max_tokens:  # else every request that says nothing of them is refused
            raise ValueError(f"min_tokens is {self.min_tokens}, more than max_tokens, which is {self.max_tokens}")
        return self

    @property
    def sampling(self) -> Sampling:
        """The task's defaults."""
        return Sampling(**{name: getattr(self, name) for name in FIELDS})

    def sizes(self, directory: Path, hidden: int | None) -> dict[str, int | None]:
        return {spec.name: 1 for spec in (*self.gives, *self.may_give)}

    @classmethod
    def joined(cls, parts: Sequence[Outputs]) -> Outputs:
        last, own = parts[-1], [part["text_output"] for part in parts]
        text = "".join(text for each in own for text in strings(each))
        told = [list_of(part["logprobs"]) for part in parts if "logprobs" in part]
        return {
            **last,
            "text_output": np.array([text.encode()], dtype=np.object_),
            "num_output_tokens": sum((part["num_output_tokens"] for part in parts), np.zeros(1, dtype=np.uint32)),
            "logprobs": as_tensor([each for some in told if some is not None for each in some] if any(told) else None),
        }

    @classmethod
    def result(cls, labels: Sequence[str], item: Any, outputs: Outputs, truncated: bool) -> Result:
        return Generated(
            "".join(strings(outputs["text_output"])),
            strings(outputs["finish_reason"])[0],
            int(outputs["num_input_tokens"].item()),
            int(outputs["num_output_tokens"].item()),
            list_of(outputs["logprobs"]),
        )

    # -- fitting: labels are the answers

    @classmethod
    def parted(cls, cell: Any) -> tuple[Any, Any] | None:
        """A conversation as all that is said before its last message, and that: the assistant's answer."""
        turns = turns_of(cell)
        if turns is None:
            return None
        if len(turns) < 2 or turns[-1][0] != "assistant":
            raise ValueError("its last message is no answer of the assistant's to another. Leave the row out")
        return [{"role": role, "content": content} for role, content in turns[:-1]], turns[-1][1]

    @classmethod
    def asked(cls, cell: Any) -> Any:
        """The messages of a conversation that is told as JSON."""
        return (messages_in(cell) if isinstance(cell, str) else None) or cell

    def check_labels(self, rows: Rows) -> None:
        blank = [place for place, value in enumerate(rows.labels) if not _answer(value).strip()]
        if blank:
            raise TaskProblem(f"{rows.source}, {places(blank)}: there is no answer. Fill it in, or leave the row out")

    def targets(self, rows: Rows) -> list[str]:
        return [_answer(value) for value in rows.labels]

    def figures_of_loss(self, loss: float) -> dict[str, float]:
        from fmplex_backend.decoders.figures import DIGITS

        return {"perplexity": round(math.exp(min(loss, MAX_LOSS)), DIGITS)}

    def figures(self, rows: Rows, outputs: Sequence[Outputs]) -> Evaluation:
        """How many answers are those of the rows, but for blanks at their ends."""
        from fmplex_backend.decoders.figures import DIGITS, Evaluation

        said = ["".join(strings(each["text_output"])).strip() for each in outputs]
        right = sum(one == other.strip() for one, other in zip(said, self.targets(rows), strict=True))
        return Evaluation({"exact_match": round(right / max(1, len(said)), DIGITS)}, len(rows))


def _answer(value: Any) -> str:
    """A label as text: it may be a list of one message of the assistant's, too."""
    try:
        turns = turns_of(value)
    except ValueError:
        turns = None
    return turns[-1][1] if turns else str(value)


def list_of(tensor: Any) -> list[Any] | None:
    """What a logprobs tensor says."""
    found: list[Any] | None = json.loads(strings(tensor)[0])
    return found


def as_tensor(logprobs: list[Any] | None) -> Any:
    """A logprobs tensor: JSON."""
    return np.array([json.dumps(logprobs, ensure_ascii=False).encode()], dtype=np.object_)
