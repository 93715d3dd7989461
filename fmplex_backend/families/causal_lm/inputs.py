"""The tensors of language models: those of Triton's vLLM backend, so that its clients work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fmplex_backend.errors import TaskProblem
from fmplex_backend.interface import TensorSpec


class PromptInput:
    """text_input [1], a string."""

    tensor = TensorSpec("text_input", "TYPE_STRING", (1,))
    columns: Literal["one", "several"] = "one"
    default_column = "text"
    files: Sequence[str] = ()

    def is_item(self, data: Any) -> bool:
        return isinstance(data, str)

    def item(self, cell: Any) -> tuple[str, list[tuple[int, int]]]:
        if not isinstance(cell, str):
            raise ValueError(f"{cell!r} is not a text. Turn it into one, or leave the row out")
        return cell, []

    def array(self, items: Sequence[Any]) -> npt.NDArray[Any]:
        """[n, 1]."""
        odd = [item for item in items if not isinstance(item, str)]
        if odd:
            raise TaskProblem(f"the task reads texts, not {odd[0]!r}. Give one text or a list of them")
        return np.array([text.encode() for text in items], dtype=np.object_)[:, None]

    def parse(self, argument: str) -> str:
        return argument

    def show(self, item: Any) -> str:
        return " ".join(str(item).split())

    def probe(self, size: int | None) -> str:
        return "Hello"


PROMPT = PromptInput()
STREAM = TensorSpec("stream", "TYPE_BOOL", (1,))
SAMPLING_PARAMETERS = TensorSpec("sampling_parameters", "TYPE_STRING", (1,))
EXCLUDE_INPUT = TensorSpec("exclude_input_in_output", "TYPE_BOOL", (1,))

TEXT_OUTPUT = TensorSpec("text_output", "TYPE_STRING", (1,))
FINISH_REASON = TensorSpec("finish_reason", "TYPE_STRING", (1,))
INPUT_TOKENS = TensorSpec("num_input_tokens", "TYPE_UINT32", (1,))
OUTPUT_TOKENS = TensorSpec("num_output_tokens", "TYPE_UINT32", (1,))
LOGPROBS = TensorSpec("logprobs", "TYPE_STRING", (1,))
