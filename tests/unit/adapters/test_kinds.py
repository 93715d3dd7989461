"""Kinds of adapters: their settings as PEFT's configuration."""

from __future__ import annotations

import pytest

from fmplex_backend.adapters.kinds import IA3, KINDS, MAX_RANK, DoRA, LoRA
from fmplex_backend.errors import TaskProblem


def test_lora_as_peft_has_it() -> None:
    config = LoRA(r=4, targets=["query"], rank_pattern={"query": 6}, rslora=True, dropout=0.1).peft_config("bert")
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.1)
    assert config.target_modules == {"query"}
    assert (config.use_rslora, config.use_dora, config.rank_pattern, config.bias) == (True, False, {"query": 6}, "none")
    assert LoRA(alpha=3).peft_config("bert").lora_alpha == 3
    assert DoRA(r=2).peft_config("bert").use_dora


def test_modules_are_pefts_choice_or_named() -> None:
    assert LoRA().peft_config("bert").target_modules == {"query", "value"}
    assert LoRA(targets="all-linear").peft_config("bert").target_modules == "all-linear"
    assert LoRA(targets="dense").peft_config("bert").target_modules == {"dense"}
    with pytest.raises(TaskProblem, match="PEFT has no default modules for LORA in a sorcerer"):
        LoRA().peft_config("sorcerer")


def test_ia3_scales_the_input_of_feedforward_modules() -> None:
    config = IA3(targets=["value", "dense"], feedforward=["dense"]).peft_config("bert")
    assert (config.target_modules, config.feedforward_modules) == ({"value", "dense"}, {"dense"})
    assert set(IA3().peft_config("bert").feedforward_modules) <= set(IA3().peft_config("bert").target_modules)


@pytest.mark.parametrize("rank", [0, -1, MAX_RANK + 1])
def test_a_rank_out_of_range(rank: int) -> None:
    with pytest.raises(TaskProblem, match=f"rank {rank} is not between 1 and {MAX_RANK}"):
        LoRA(r=rank).peft_config("bert")


def test_every_kind_is_made_of_a_command_lines_options() -> None:
    made = {kind: each.of_options(4, ["query"]) for kind, each in KINDS.items()}
    assert made == {"lora": LoRA(4, targets=["query"]), "dora": DoRA(4, targets=["query"]), "ia3": IA3(["query"])}
    assert [each.learning_rate for each in made.values()] == [1e-3, 1e-3, 5e-3]
