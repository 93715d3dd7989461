"""Patterns of files match what PEFT would match, whatever they are, and none of them takes forever."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from model_fixtures import TINY, tiny_model
from peft.tuners.ia3 import IA3Model
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from fmplex_backend.adapters import patterns
from fmplex_backend.adapters.match_names import found
from fmplex_backend.adapters.patterns import BadPattern, ending, in_layers, named, with_pattern

BERT = [f"bert.{name}" for name, _ in tiny_model("bert").named_modules() if name]
MODULES = [
    *BERT,
    "model.layers.1.experts.0.q_proj",
    "model.layers.10.mlp.down_proj",
    "h.3.attn",
    "layers.2.q",
    "q_proj",
    "a.q_proj.b",
]
PATTERNS = [
    "query",
    r".*\.query",
    r".*\.(query|value)$",
    r"bert\.encoder\.layer\.(0|1)\..*",
    r"bert\.encoder\.layer\.[1-9]\.attention\.self\.\w+",
    r"^(?!.*layer\.0).*\.(query|key)$",
    r"^(bert\.encoder(?=\.).*\.(dense|value))$",
    r"(?:.*?(?:self|attn).*?(?:query|q_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.mlp\.(?:down_proj))",
    r"(?i).*QUERY",
    r".*(q)\1?.*",
    r".*\.layer\.\d+\.attention\.(?P<name>self)\.query",
]


def config(**fields: Any) -> Any:
    names = ("target_modules", "exclude_modules", "target_parameters", "modules_to_save")
    return SimpleNamespace(**{**dict.fromkeys(names), "layers_to_transform": None, "layers_pattern": None, **fields})


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_of_target_modules(pattern: str) -> None:
    wanted = {name for name in MODULES if check_target_module_exists(config(target_modules=pattern), name)}
    assert named(pattern, MODULES) == wanted


@pytest.mark.parametrize("ends", [["query"], ["query", "layer.1.attention.self.value"], ["uery"], [], ["q_proj", ""]])
def test_ends_of_names(ends: list[str]) -> None:
    wanted = {name for name in MODULES if check_target_module_exists(config(target_modules=set(ends)), name)}
    assert named(ends, MODULES) == wanted
    scaled = SimpleNamespace(feedforward_modules=set(ends))
    assert ending(ends, MODULES) == {n for n in MODULES if IA3Model._check_target_module_feedforward(scaled, n)}


@pytest.mark.parametrize("layers", [0, 1, [1], [0, 10], [3], [7]])
@pytest.mark.parametrize(
    "pattern", [None, "", [], "layer", "layers", ["h", "layers"], "experts", "lay.*", "(layers|h)"]
)
def test_layers(layers: int | list[int], pattern: Any) -> None:
    """Among names that target_modules mean by their ends."""
    ends = {"query", "q_proj", "down_proj", "attn", "q"}
    every = config(target_modules=ends)
    candidates = [name for name in MODULES if check_target_module_exists(every, name) and name not in ends]
    some = config(target_modules=ends, layers_to_transform=layers, layers_pattern=pattern)
    numbered = [name for name in candidates if any(part.isdigit() for part in name.split("."))]
    wanted = {name for name in numbered if _peft_takes(some, name)}
    assert in_layers(layers, pattern, numbered) == wanted


def _peft_takes(wanted: Any, name: str) -> bool:
    try:
        return bool(check_target_module_exists(wanted, name))
    except UnboundLocalError:  # PEFT's own, where no pattern has matched yet
        return False


@pytest.mark.parametrize(
    "keys",
    [
        ["query"],
        ["^bert.encoder.layer.0.attention.self.query"],
        ["value", r"layer\.[01].*(query|value)"],
        ["attention.self.key", "key", "q|value"],
        [r"\d+.attention.self.query"],
        [],
    ],
)
def test_keys_of_rank_and_alpha_patterns(keys: list[str]) -> None:
    wanted = {name: get_pattern_key(keys, name) for name in MODULES if get_pattern_key(keys, name) in keys}
    assert with_pattern(keys, MODULES) == wanted


def test_plain_patterns_need_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    assert named("q_proj", MODULES) == {"q_proj"}
    assert with_pattern(["^bert.encoder.layer.0.attention.self.query", r"self\.value"], BERT)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(\w+\.?)+!",
        r"((.*)+)+!",
        r"(?:(?:\w|\.)*)*!",
        r"^(([a-z._0-9])+.)+[A-Z]([a-z])+$",
        r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)!",
        "(a|a|b|b)" * 200,
        "(.?)" * 400 + "!" * 60,
        r"(?:\w*\w*\w*\w*\w*\w*\w*\w*)*!",
        "(((((((((x{99}){99}){99}){99}){99}){99}){99}){99}){99})",
        r"(?i)" + "[\x01-\U0010ffff]" * 30,
        "(" * 999 + ")" * 999,
    ],
)
def test_none_takes_forever(monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    """It matches, does not, or is refused: within the time that is given to it."""
    monkeypatch.setattr(patterns, "SECONDS", 0.05)
    with suppress(BadPattern):
        assert named(pattern, BERT) <= set(BERT)


def test_no_python_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "sys", SimpleNamespace(executable=""))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BadPattern, match="no Python program"):
        named(".*nobody.*asked.*this.*before", MODULES)


def test_a_group_that_numbers_a_layer() -> None:
    queries = [("match", r".*?\.(?P<idx>\d+)\."), ("fullmatch", "a.*")]
    assert found(queries, ["a.12.b", "ab"]) == [["12", None], ["", ""]]


@pytest.mark.parametrize("kind", TINY)
def test_the_architectures_that_are_served(kind: str) -> None:
    names = [name for name, _ in tiny_model(kind).named_modules() if name]
    for pattern in PATTERNS[:5]:
        wanted = config(target_modules=pattern)
        assert named(pattern, names) == {name for name in names if check_target_module_exists(wanted, name)}
