"""The tensors of language models: those of Triton's vLLM backend, so that its clients work."""

from __future__ import annotations

from typing import Any

from fmplex_backend.families.strings import StringInput
from fmplex_backend.interface import TensorSpec


class PromptInput(StringInput):
    """text_input [1], a string."""

    tensor = TensorSpec("text_input", "TYPE_STRING", (1,))

    def item(self, cell: Any) -> tuple[str, list[tuple[int, int]]]:
        if not isinstance(cell, str):
            raise ValueError(f"{cell!r} is not a text. Turn it into one, or leave the row out")
        return cell, []

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
