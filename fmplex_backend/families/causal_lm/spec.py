"""The spec of causal language models. Imports neither torch nor Triton."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from fmplex_backend.adapters.kinds import PeftAdapter
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.causal_lm.inputs import (
    EXCLUDE_INPUT,
    MESSAGES,
    PROMPT,
    RETURN_CUMULATIVE,
    RETURN_OTHERS,
    SAMPLING_PARAMETERS,
    STREAM,
)
from fmplex_backend.families.causal_lm.parameters import CausalLmConfig
from fmplex_backend.families.causal_lm.sections import Generator, Prompt
from fmplex_backend.families.model_files import fingerprint_of
from fmplex_backend.families.spec import Family, SequenceInputs
from fmplex_backend.repository.parameters import BackboneConfig
from fmplex_backend.types import Predict, Runtime


class CausalLms(Family):
    """Llama, Qwen, Gemma, Phi, SmolLM and their like, through transformers' AutoModelForCausalLM."""

    name = "causal-lm"
    inputs = (PROMPT,)
    optional_inputs = (STREAM, SAMPLING_PARAMETERS, EXCLUDE_INPUT, MESSAGES, RETURN_CUMULATIVE, *RETURN_OTHERS)
    encoders = (Prompt,)
    adapters = (PeftAdapter,)
    decoders = (Generator,)
    parameters = CausalLmConfig
    limits = ("max_running", "max_kv_share")
    streams = True
    batched = False
    probe_parameters: ClassVar[Mapping[str, str]] = {"max_tokens": "1", "temperature": "0"}

    def max_items(self, config: BackboneConfig, max_batch_size: int) -> int:
        assert isinstance(config, CausalLmConfig)
        return config.max_sequences

    def encoder_for(self, columns: Sequence[str], options: Mapping[str, Any]) -> Prompt:
        """Prompts as they are; raises TaskProblem for what other families' encoders have."""
        if columns or options:
            wrong = "columns of numbers" if columns else ", ".join(options)
            raise TaskProblem(f"a task on a {self.name} reads prompts: {wrong} are of other families. Leave them out")
        return Prompt()

    def make_runtime(
        self, config: BackboneConfig, file: Path, device: str, max_items: int, predict: Predict
    ) -> Runtime:
        from fmplex_backend.families.causal_lm.runtime import CausalLmRuntime

        assert isinstance(config, CausalLmConfig)
        return CausalLmRuntime(config, file, device)

    def takes_model(self, config: Mapping[str, Any]) -> bool:
        """Models that say so themselves."""
        made_for = " ".join(map(str, config.get("architectures") or ()))
        return "CausalLM" in made_for or "LMHead" in made_for

    def hidden_width(self, config: BackboneConfig, file: Path) -> int | None:
        return None

    def fingerprint(self, config: BackboneConfig, file: Path) -> str | None:
        return fingerprint_of(config.model, file)

    def sequence_inputs(self, encoder: Any, decoder: Any, runtime: Any) -> SequenceInputs:
        from fmplex_backend.families.causal_lm.fitting import Answers

        return Answers(encoder, decoder, runtime)
