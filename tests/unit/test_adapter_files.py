"""What is refused of a PEFT directory, and by which name: file, field and remedy."""

from __future__ import annotations

import json
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

from fmplex_backend.errors import TaskRefused
from fmplex_backend.extensions.adapters import Adapter, load_adapter

# PEFT 0.21 asks transformers 5 for a property under its former name
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

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
