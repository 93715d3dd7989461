"""Kinds of adapters: their settings in the Task-API, and the section of task.json that all of them share.

`adapters.peft` reads a saved adapter, `adapters.multi_lora` applies it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from fmplex_backend.errors import TaskProblem
from fmplex_backend.section import CHECKED, PathInside

MAX_RANK = 512
Targets = str | Sequence[str]


@dataclass(config=CHECKED, frozen=True)
class PeftAdapter:
    """A PEFT directory inside the version directory."""

    path: PathInside = "adapter"
    kind: Literal["peft"] = field(default="peft", kw_only=True, repr=False)


@plain_dataclass(frozen=True, slots=True)
class LoRA:
    """Low-rank adaptation (Hu et al. 2021), as PEFT does it.

    Args:
        r: rank.
        alpha: scale times rank; twice the rank by default.
        targets: names of Linear modules, "all-linear", or "auto" for PEFT's choice for the architecture, and where it
            has none, the attention's queries and values (of a convolutional one, the layers between channels).
        rslora: scale by 1/sqrt(r) (Kalajdzievski 2023).
        rank_pattern: ranks of single modules, by name; alpha_pattern likewise.
    """

    r: int = 8
    alpha: int | None = None
    targets: Targets = "auto"
    dropout: float = 0.0
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    learning_rate: ClassVar[float] = 1e-3
    dora: ClassVar[bool] = False

    @classmethod
    def of_options(cls, rank: int, targets: Targets) -> LoRA:
        """From the options of the command line."""
        return cls(r=rank, targets=targets)

    def peft_config(self, model_type: str, linears: Collection[str] = ()) -> Any:
        """PEFT's configuration for an architecture; raises TaskProblem.

        Args:
            linears: the last parts of the names of its Linear modules.
        """
        from peft import LoraConfig

        if not 1 <= self.r <= MAX_RANK:
            raise TaskProblem(f"rank {self.r} is not between 1 and {MAX_RANK}. Choose one that is, e.g. LoRA(r=8)")
        return LoraConfig(
            r=self.r,
            lora_alpha=2 * self.r if self.alpha is None else self.alpha,
            target_modules=_target_modules(self.targets, "LORA", model_type, linears),
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            use_dora=self.dora,
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=dict(self.alpha_pattern),
            bias="none",
        )


@plain_dataclass(frozen=True, slots=True)
class DoRA(LoRA):
    """Weight-decomposed LoRA (Liu et al. 2024). It cannot share a matrix product with other tasks' adapters."""

    dora: ClassVar[bool] = True


@plain_dataclass(frozen=True, slots=True)
class IA3:
    """Learned rescaling (Liu et al. 2022).

    Args:
        targets: names of Linear modules, or "auto".
        feedforward: those of them whose input is scaled, not their output.
    """

    targets: Targets = "auto"
    feedforward: Sequence[str] = ()

    learning_rate: ClassVar[float] = 5e-3

    @classmethod
    def of_options(cls, rank: int, targets: Targets) -> IA3:
        """From the options of the command line; IA3 has no rank."""
        return cls(targets=targets)

    def peft_config(self, model_type: str, linears: Collection[str] = ()) -> Any:
        """PEFT's configuration for an architecture; raises TaskProblem."""
        from peft import IA3Config
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEEDFORWARD

        targets = _target_modules(self.targets, "IA3", model_type)
        inner = FEEDFORWARD.get(model_type, []) if self.targets == "auto" else list(self.feedforward)
        return IA3Config(target_modules=targets, feedforward_modules=inner)


@plain_dataclass(frozen=True, slots=True)
class Pretrained:
    """An adapter that is trained already: a directory that `save_pretrained` wrote, or a hub id."""

    source: str | Path

    learning_rate: ClassVar[float] = 1e-3


Adapter = LoRA | IA3 | Pretrained
# Names that architectures give to what LoRA adapts by default.
QUERIES_AND_VALUES = (("query", "value"), ("q_proj", "v_proj"), ("qkv",), ("pwconv1", "pwconv2"))
KINDS: dict[str, type[LoRA] | type[IA3]] = {"lora": LoRA, "dora": DoRA, "ia3": IA3}


def _target_modules(wanted: Targets, kind: str, model_type: str, linears: Collection[str] = ()) -> str | list[str]:
    from peft.utils import constants

    if not isinstance(wanted, str):
        return list(wanted)
    if wanted != "auto":
        return wanted if wanted == "all-linear" else [wanted]
    known: Mapping[str, Sequence[str]] = getattr(constants, f"TRANSFORMERS_MODELS_TO_{kind}_TARGET_MODULES_MAPPING")
    if model_type not in known:
        if found := next((names for names in QUERIES_AND_VALUES if set(names) <= set(linears)), None):
            return list(found)
        raise TaskProblem(
            f"PEFT has no default modules for {kind} in a {model_type}. Name them: LoRA(targets=['query', 'value']), "
            "or targets='all-linear'"
        )
    return list(known[model_type])
