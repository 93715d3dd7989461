"""What is refused of a PEFT directory, and by which name: file, field and remedy; and what sound ones are not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import save_adapter, tiny_model
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file

from fmplex_backend.adapters import patterns
from fmplex_backend.adapters.peft import Adapter, load_adapter
from fmplex_backend.errors import TaskRefused

# PEFT 0.21 asks transformers 5 for a property under its former name
Tensors = dict[str, torch.Tensor]
QUERY = "base_model.model.encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("bert")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", LoraConfig(r=4, target_modules=["query"]))


def load(directory: Path, model: Any) -> Adapter:
    return load_adapter(directory, model, torch.float32, torch.device("cpu"))


def refused(directory: Path, model: Any) -> TaskRefused:
    with pytest.raises(TaskRefused) as caught:
        load(directory, model)
    assert caught.value.remedy
    return caught.value


# what PEFT wants beside an option
COMPANIONS: dict[Any, dict[str, Any]] = {
    "corda": {"corda_config": {}},
    "loftq": {"loftq_config": {"loftq_bits": 4}},
    "lora_ga": {"lora_ga_config": {}},
    "eva": {"eva_config": {}},
    "alora_invocation_tokens": {"task_type": "CAUSAL_LM"},
}


def set_option(directory: Path, option: str, value: Any) -> None:
    file = directory / "adapter_config.json"
    more = {**COMPANIONS.get(option, {}), **(COMPANIONS.get(value, {}) if isinstance(value, str) else {})}
    file.write_text(json.dumps({**json.loads(file.read_text()), option: value, **more}))


def change_tensors(directory: Path, change: Callable[[Tensors], object]) -> None:
    file = directory / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


# -- kinds


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("ADALORA", lambda: AdaLoraConfig(target_modules=["query"], total_step=10)),
        ("LOHA", lambda: LoHaConfig(target_modules=["query"])),
        ("LOKR", lambda: LoKrConfig(target_modules=["query"])),
        ("VERA", lambda: VeraConfig(target_modules=["query"], r=4)),
        ("OFT", lambda: OFTConfig(target_modules=["query"], oft_block_size=4)),
        ("PROMPT_TUNING", lambda: PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=2)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_kinds_are_refused_by_name(tmp_path: Path, model: Any, kind: str, config: Callable[[], Any]) -> None:
    get_peft_model(tiny_model("bert"), config()).save_pretrained(str(tmp_path))
    error = refused(tmp_path, model)
    assert (error.field, error.file) == ("peft_type", str(tmp_path / "adapter_config.json"))
    assert f"{kind} adapters are not supported" in error.problem
    assert "LoRA" in error.remedy


def test_supported_kinds(tmp_path: Path, model: Any) -> None:
    configs = {
        "lora": LoraConfig(r=4, target_modules=["query"]),
        "dora": LoraConfig(r=4, target_modules=["query"], use_dora=True),
        "ia3": IA3Config(target_modules=["query"], feedforward_modules=[]),
    }
    for kind, config in configs.items():
        assert load(save_adapter(tmp_path / kind, config), model).kind == kind


# -- options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("modules_to_save", ["classifier"]),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("layer_replication", [[0, 1], [0, 2]]),
        ("target_parameters", ["encoder.weight"]),
        ("trainable_token_indices", [1, 2]),
        ("fan_in_fan_out", True),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("alora_invocation_tokens", [5, 6]),
        ("use_qalora", True),
        ("kasa_config", {}),
        ("arrow_config", {}),
        ("use_bdlora", {"target_modules_bd_a": ["query"], "target_modules_bd_b": [], "nblocks": 2}),
    ],
)
def test_options_that_would_need_more_than_the_weights_are_refused_by_name(
    adapter: Path, model: Any, option: str, value: Any
) -> None:
    set_option(adapter, option, value)
    error = refused(adapter, model)
    assert (error.field, error.file) == (option, str(adapter / "adapter_config.json"))


@pytest.mark.parametrize("value", [True, False, "gaussian", "eva", "orthogonal"])
def test_initialisations_that_leave_the_backbone_alone(adapter: Path, model: Any, value: Any) -> None:
    set_option(adapter, "init_lora_weights", value)
    assert load(adapter, model).rank == 4


def test_lora_of_an_embedding_is_refused(tmp_path: Path, model: Any) -> None:
    path = save_adapter(tmp_path, LoraConfig(r=4, target_modules=["word_embeddings", "query"]))
    error = refused(path, model)
    assert "lora_embedding_A" in error.field


# -- files


def test_no_directory(tmp_path: Path, model: Any) -> None:
    error = refused(tmp_path / "adapter", model)
    assert error.file.endswith("adapter_config.json")
    assert "no such file" in error.problem


@pytest.mark.parametrize("text", ["", "{", "[]", '{"peft_type": "NOT_A_KIND"}', "{}"])
def test_a_config_that_peft_cannot_read(adapter: Path, model: Any, text: str) -> None:
    (adapter / "adapter_config.json").write_text(text)
    error = refused(adapter, model)
    assert error.file == str(adapter / "adapter_config.json")


def test_no_weights(adapter: Path, model: Any) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    error = refused(adapter, model)
    assert (error.file, error.problem) == (str(adapter / "adapter_model.safetensors"), "there is no such file")


def test_weights_cut_short(adapter: Path, model: Any) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert "not readable as safetensors" in refused(adapter, model).problem


def test_nan(adapter: Path, model: Any) -> None:
    change_tensors(adapter, lambda tensors: tensors[f"{QUERY}.lora_A.weight"].fill_(torch.nan))
    error = refused(adapter, model)
    assert (error.field, "NaN" in error.problem) == (f"{QUERY}.lora_A.weight", True)


def test_a_module_that_the_backbone_does_not_have(adapter: Path, model: Any) -> None:
    def move(tensors: Tensors) -> None:
        for part in ("A", "B"):
            name = f"{QUERY}.lora_{part}.weight"
            tensors[name.replace("layer.0", "layer.7")] = tensors.pop(name)

    change_tensors(adapter, move)
    error = refused(adapter, model)
    assert "layer.7" in error.field
    assert "another backbone" in error.remedy


def test_a_module_that_is_not_linear(adapter: Path, model: Any) -> None:
    def move(tensors: Tensors) -> None:
        for part in ("A", "B"):
            tensors[f"base_model.model.encoder.layer.0.lora_{part}.weight"] = tensors.pop(f"{QUERY}.lora_{part}.weight")

    change_tensors(adapter, move)
    error = refused(adapter, model)
    assert error.field == "target_modules"
    assert "BertLayer" in error.problem


@pytest.mark.parametrize(
    ("part", "shape"),
    [("A", (4, 31)), ("B", (31, 4)), ("B", (32, 5)), ("A", (32,)), ("A", ()), ("B", ()), ("A", (0, 32))],
)
def test_a_wrong_shape(adapter: Path, model: Any, part: str, shape: tuple[int, ...]) -> None:
    change_tensors(adapter, lambda tensors: tensors.update({f"{QUERY}.lora_{part}.weight": torch.ones(shape)}))
    error = refused(adapter, model)
    assert error.file == str(adapter / "adapter_model.safetensors")
    assert error.field.startswith(QUERY)


def test_a_rank_beyond_the_limit(tmp_path: Path, model: Any) -> None:
    path = save_adapter(tmp_path, LoraConfig(r=600, target_modules=["query"]))
    assert "rank 600" in refused(path, model).problem


def test_half_a_pair(adapter: Path, model: Any) -> None:
    change_tensors(adapter, lambda tensors: tensors.pop(f"{QUERY}.lora_B.weight"))
    error = refused(adapter, model)
    assert error.field == QUERY.removeprefix("base_model.model.")
    assert "lora_A" in error.problem


def test_a_tensor_of_another_kind(adapter: Path, model: Any) -> None:
    change_tensors(adapter, lambda tensors: tensors.update({f"{QUERY}.weight": torch.ones(32, 32)}))
    assert refused(adapter, model).field == f"{QUERY}.weight"


def test_no_tensors(adapter: Path, model: Any) -> None:
    change_tensors(adapter, lambda tensors: tensors.clear())
    assert "holds no tensors" in refused(adapter, model).problem


def test_dora_without_magnitudes(tmp_path: Path, model: Any) -> None:
    path = save_adapter(tmp_path, LoraConfig(r=4, target_modules=["query"], use_dora=True))
    change_tensors(path, lambda tensors: [tensors.pop(name) for name in list(tensors) if "magnitude" in name])
    assert "lora_magnitude_vector" in refused(path, model).problem


@pytest.mark.parametrize(("before", "size"), [(True, 31), (False, 33)])
def test_ia3_of_a_wrong_size(tmp_path: Path, model: Any, before: bool, size: int) -> None:
    feedforward = ["query"] if before else []
    path = save_adapter(tmp_path, IA3Config(target_modules=["query"], feedforward_modules=feedforward))
    change_tensors(path, lambda tensors: tensors.update({f"{QUERY}.ia3_l": torch.ones(size, 1)}))
    assert refused(path, model).field == f"{QUERY}.ia3_l"


def test_a_config_that_is_not_ascii(adapter: Path, model: Any) -> None:
    """Written by another tool than PEFT, which escapes it. Triton runs Python with ASCII as the encoding of files."""
    file = adapter / "adapter_config.json"
    document = json.loads(file.read_text()) | {"base_model_name_or_path": "/home/jürgen/模型"}
    file.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    assert load(adapter, model).kind == "lora"


@pytest.mark.parametrize(
    "put", [Path.mkdir, os.mkfifo, lambda file: file.symlink_to(file), lambda file: file.write_text("[" * 100_000)]
)
def test_a_config_that_is_no_file_or_no_json(adapter: Path, model: Any, put: Callable[[Path], Any]) -> None:
    file = adapter / "adapter_config.json"
    file.unlink()
    put(file)
    assert refused(adapter, model).file == str(file)


# -- numbers


def of_dtype(dtype: torch.dtype) -> Callable[[Tensors], None]:
    """All tensors cast."""

    def change(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(dtype)

    return change


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.bool, torch.complex64, torch.int64, torch.float8_e4m3fn]
)
def test_what_is_no_float_is_not_cast(adapter: Path, model: Any, dtype: torch.dtype) -> None:
    change_tensors(adapter, of_dtype(dtype))
    error = refused(adapter, model)
    assert error.file == str(adapter / "adapter_model.safetensors")
    assert "lora_A" in error.field
    assert "not F64 or F32" in error.problem


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_are_cast(adapter: Path, model: Any, dtype: torch.dtype) -> None:
    change_tensors(adapter, of_dtype(dtype))
    assert {each.a.dtype for each in load(adapter, model).lora.values()} == {torch.float32}


@pytest.mark.parametrize(
    "alpha", [float("nan"), float("inf"), 0, 0.0, "16", True, None, [16], pytest.param(10**400, id="huge")]
)
def test_an_alpha_that_scales_nothing(adapter: Path, model: Any, alpha: Any) -> None:
    set_option(adapter, "lora_alpha", alpha)
    error = refused(adapter, model)
    assert (error.file, error.field) == (str(adapter / "adapter_config.json"), "lora_alpha")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("alpha_pattern", {"query": float("nan")}),
        ("alpha_pattern", {"query": 0}),
        ("alpha_pattern", ["query"]),
        ("rank_pattern", {"query": 4.5}),
        ("rank_pattern", {"query": 0}),
        ("r", "4"),
        ("r", 0),
        ("target_modules", 7),
        ("target_modules", ["query", 7]),
        ("layers_to_transform", ["0"]),
        ("use_rslora", "false"),
    ],
)
def test_fields_of_another_type(adapter: Path, model: Any, option: str, value: Any) -> None:
    set_option(adapter, option, value)
    assert refused(adapter, model).field == option


@pytest.mark.parametrize("alpha", [1e38, -1e38, 1e300, 1e9])
def test_an_alpha_that_drowns_the_backbone(adapter: Path, model: Any, alpha: float) -> None:
    set_option(adapter, "lora_alpha", alpha)
    error = refused(adapter, model)
    assert error.field == QUERY.removeprefix("base_model.model.")
    assert "lora_alpha" in error.problem
    assert "Correct lora_alpha" in error.remedy


@pytest.mark.parametrize("alpha", [8, 2.5, -8, 512])
def test_an_alpha_that_does_not(adapter: Path, model: Any, alpha: float) -> None:
    set_option(adapter, "lora_alpha", alpha)
    assert load(adapter, model).rank == 4


@pytest.mark.parametrize("part", ["A", "B"])
def test_weights_too_large_for_any_answer(adapter: Path, model: Any, part: str) -> None:
    change_tensors(adapter, lambda tensors: tensors[f"{QUERY}.lora_{part}.weight"].fill_(3e38))
    assert refused(adapter, model).file == str(adapter / "adapter_model.safetensors")


def test_weights_that_the_backbones_dtype_does_not_hold(adapter: Path, model: Any) -> None:
    def change(tensors: Tensors) -> None:  # the product stays as it is
        tensors[f"{QUERY}.lora_A.weight"] *= 1e6
        tensors[f"{QUERY}.lora_B.weight"] /= 1e6

    change_tensors(adapter, change)
    load(adapter, model)
    with pytest.raises(TaskRefused, match=r"lora_A\.weight: it holds numbers that float16 does not hold"):
        load_adapter(adapter, model, torch.float16, torch.device("cpu"))


def test_factors_and_magnitudes_too_large(tmp_path: Path, model: Any) -> None:
    ia3 = save_adapter(tmp_path / "ia3", IA3Config(target_modules=["query"], feedforward_modules=[]))
    change_tensors(ia3, lambda tensors: tensors[f"{QUERY}.ia3_l"].fill_(1e30))
    assert refused(ia3, model).field == f"{QUERY}.ia3_l"
    dora = save_adapter(tmp_path / "dora", LoraConfig(r=4, target_modules=["query"], use_dora=True))
    change_tensors(dora, lambda tensors: tensors[f"{QUERY}.lora_magnitude_vector"].fill_(1e30))
    assert refused(dora, model).field == f"{QUERY}.lora_magnitude_vector"


# -- settings and tensors that disagree


@pytest.mark.parametrize(
    ("option", "value", "field"),
    [
        ("r", 8, "r"),
        ("rank_pattern", {"layer.0.attention.self.query": 2}, "rank_pattern"),
        ("target_modules", ["query", "value"], "target_modules"),
        ("target_modules", ["value"], "target_modules"),
        ("target_modules", [], "target_modules"),
        ("target_modules", r".*layer\.0\..*query", "target_modules"),
        ("target_modules", r".*(query|key)", "target_modules"),
        ("target_modules", "all-linear", "target_modules"),
        ("target_modules", None, "target_modules"),
        ("exclude_modules", ["layer.0.attention.self.query"], "target_modules"),
        ("layers_to_transform", [0], "layers_to_transform"),
        ("layers_to_transform", 1, "layers_to_transform"),
        ("layers_to_transform", [0, 1, 2], None),
    ],
)
def test_settings_that_mean_other_tensors(
    adapter: Path, model: Any, option: str, value: Any, field: str | None
) -> None:
    set_option(adapter, option, value)
    if field is None:
        load(adapter, model)
        return
    error = refused(adapter, model)
    assert (error.file, error.field) == (str(adapter / "adapter_config.json"), field)
    assert any(name in error.problem for name in ("query", "value", "key"))


def test_a_layer_without_its_tensors(adapter: Path, model: Any) -> None:
    change_tensors(adapter, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layer.1" in name])
    error = refused(adapter, model)
    assert error.field == "target_modules"
    assert "has no tensors for encoder.layer.1.attention.self.query" in error.problem


def test_one_module_twice(adapter: Path, model: Any) -> None:
    name = f"{QUERY}.lora_A.weight"
    change_tensors(
        adapter,
        lambda tensors: tensors.update({name.replace("model.encoder", "model.bert.encoder"): tensors[name].clone()}),
    )
    assert "same module as" in refused(adapter, model).problem


# -- sound ones, as PEFT saves them

SOUND: dict[str, dict[str, Any]] = {
    "all-linear": {"target_modules": "all-linear"},
    "pattern": {"target_modules": r".*\.(query|value)"},
    "lookahead": {"target_modules": r"^(?!.*layer\.0).*\.query$"},
    "excluded": {"target_modules": ["query", "value"], "exclude_modules": ["encoder.layer.0.attention.self.value"]},
    "excluded by pattern": {"target_modules": ["query"], "exclude_modules": r".*layer\.0.*"},
    "one layer": {"target_modules": ["query"], "layers_to_transform": 1},
    "layers": {"target_modules": ["query", "dense"], "layers_to_transform": [1], "layers_pattern": "layer"},
    "layers of a list": {"target_modules": ["query"], "layers_to_transform": [0], "layers_pattern": ["h", "layer"]},
    "ranks": {"target_modules": ["query", "value"], "rank_pattern": {"value": 2, r"layer\.[01].*query": 6}},
    "ranks by full name": {"target_modules": ["query"], "rank_pattern": {"^encoder.layer.0.attention.self.query": 9}},
    "alphas": {"target_modules": ["query", "value"], "alpha_pattern": {"value": 2.5}},
    "full names": {"target_modules": ["encoder.layer.0.attention.self.query"], "layers_to_transform": [1]},
    "dora": {"target_modules": ["query"], "use_dora": True},
}


@pytest.mark.parametrize("options", SOUND.values(), ids=SOUND)
def test_what_peft_saves_is_accepted(tmp_path: Path, model: Any, options: dict[str, Any]) -> None:
    path = save_adapter(tmp_path, LoraConfig(r=4, lora_alpha=6, **options))
    loaded = load(path, model)
    saved = load_file(path / "adapter_model.safetensors")
    assert len(loaded.lora or loaded.solo) == sum("lora_A" in name for name in saved)


@pytest.mark.parametrize("value", [r".*layer\.\d+\..*(query|value)", ["query", "value"]])
@pytest.mark.parametrize("feedforward", [r".*(query)", ["query"], []])
def test_ia3_that_peft_saves_is_accepted(tmp_path: Path, model: Any, value: Any, feedforward: Any) -> None:
    path = save_adapter(tmp_path, IA3Config(target_modules=value, feedforward_modules=feedforward))
    assert len(load(path, model).solo) == 4


def test_the_settings_of_an_old_peft(adapter: Path, model: Any) -> None:
    """As 0.5 wrote them: fewer fields, and None for patterns."""
    settings = {
        "auto_mapping": None,
        "base_model_name_or_path": "bert-base-uncased",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 4,
        "rank_pattern": None,
        "revision": None,
        "target_modules": ["query"],
        "task_type": "SEQ_CLS",
    }
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    assert load(adapter, model).rank == 4


def test_modules_that_nobody_reads_may_be_missing(tmp_path: Path, model: Any) -> None:
    """An adapter of "dense" that was trained in a model without a pooler."""
    path = save_adapter(tmp_path, LoraConfig(r=4, target_modules=["dense"]))
    change_tensors(path, lambda tensors: [tensors.pop(name) for name in list(tensors) if "pooler" in name])
    assert "pooler.dense" in refused(path, model).problem
    loaded = load_adapter(path, model, torch.float32, torch.device("cpu"), unread=("pooler",))
    assert "pooler.dense" not in loaded.lora


def test_modules_by_default_are_those_of_peft(tmp_path: Path, model: Any) -> None:
    path = save_adapter(tmp_path, LoraConfig(r=4, target_modules=["query", "value"]))
    set_option(path, "target_modules", None)
    assert len(load(path, model).lora) == 4


# -- patterns that never end

NEVER_ENDS = r"(\w+\.?)+!"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.05)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "option", ["target_modules", "exclude_modules", "alpha_pattern", "rank_pattern", "layers_pattern"]
)
def test_a_pattern_that_never_ends(adapter: Path, model: Any, option: str) -> None:
    set_option(adapter, option, {NEVER_ENDS: 4} if option in ("alpha_pattern", "rank_pattern") else NEVER_ENDS)
    if option == "layers_pattern":
        set_option(adapter, "layers_to_transform", [0, 1])
    error = refused(adapter, model)
    assert (error.file, error.field) == (str(adapter / "adapter_config.json"), option)
    assert "processor time" in error.problem
    assert "without patterns" in error.remedy


@pytest.mark.usefixtures("impatient")
def test_a_pattern_of_feedforward_modules_that_never_ends(tmp_path: Path, model: Any) -> None:
    path = save_adapter(tmp_path, IA3Config(target_modules=["query"], feedforward_modules=[]))
    set_option(path, "feedforward_modules", NEVER_ENDS)
    assert refused(path, model).field == "feedforward_modules"


@pytest.mark.parametrize(
    ("pattern", "says"),
    [("(", "not a regular expression"), ("x" * 2001, "2001 characters"), ("(" * 900 + ")" * 900, "not a regular")],
)
def test_a_pattern_that_is_none(adapter: Path, model: Any, pattern: str, says: str) -> None:
    set_option(adapter, "target_modules", pattern)
    error = refused(adapter, model)
    assert (error.field, says in error.problem) == ("target_modules", True)


def test_thousands_of_patterns(adapter: Path, model: Any) -> None:
    set_option(adapter, "alpha_pattern", {f"layer.{number}": 1 for number in range(5000)})
    assert "5000 patterns, 4096 at most" in refused(adapter, model).problem
    set_option(adapter, "alpha_pattern", {})
    set_option(adapter, "target_modules", ["query", *map(str, range(5000))])
    assert "5001 names, 4096 at most" in refused(adapter, model).problem
