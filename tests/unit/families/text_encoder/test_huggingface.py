"""Finding and loading a backbone; every refusal names the parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import TINY, save_tiny, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5Model

from fmplex_backend.errors import BackboneRefused
from fmplex_backend.families import precision
from fmplex_backend.families.text_encoder.huggingface import LoadedBackbone, load_backbone
from fmplex_backend.families.text_encoder.parameters import TextEncoderConfig


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("bert"))


def load(model: Path | str, **config: Any) -> LoadedBackbone:
    settings = TextEncoderConfig(model=str(model), threads=1, **config)
    return load_backbone(settings, Path("base/config.pbtxt"), torch.device("cpu"))


def refused(model: Path | str, **config: Any) -> BackboneRefused:
    with pytest.raises(BackboneRefused) as caught:
        load(model, **config)
    assert caught.value.file == "base/config.pbtxt"
    assert caught.value.remedy
    return caught.value


# -- loading


@pytest.mark.parametrize("kind", TINY)
def test_families_that_load(tmp_path: Path, kind: str) -> None:
    loaded = load(save_tiny(tmp_path, kind))
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.max_length == 48


@pytest.mark.parametrize(("kind", "longest"), [("bert", 64), ("roberta", 62), ("mpnet", 62), ("distilbert", 64)])
def test_the_longest_text_is_what_there_are_positions_for(tmp_path: Path, kind: str, longest: int) -> None:
    tiny_model(kind).save_pretrained(tmp_path)
    tiny_tokenizer(max_length=10**9).save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.max_length == longest
    with torch.inference_mode():
        loaded.model(input_ids=torch.full((1, longest), 5))


def test_a_shorter_cut_off(bert: Path) -> None:
    assert load(bert, max_length=20).max_length == 20
    assert refused(bert, max_length=49).field == "parameters.max_length"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_dtype_that_is_said(bert: Path, dtype: str) -> None:
    assert load(bert, dtype=dtype).model.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("in_hardware", "want"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_what_the_cpu_has_in_hardware(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, in_hardware: bool, want: torch.dtype
) -> None:
    tiny_model("bert").to(getattr(torch, stored)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: in_hardware)
    assert load(tmp_path, dtype="auto").model.dtype == want


def test_threads(bert: Path) -> None:
    load(bert)
    assert torch.get_num_threads() == 1


def test_what_is_no_encoder(tmp_path: Path) -> None:
    config = T5Config(vocab_size=64, d_model=32, d_ff=32, num_layers=1, num_heads=2, d_kv=16)
    T5Model(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    error = refused(tmp_path)
    assert error.field == "parameters.family"
    assert "is not a text encoder" in error.problem


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_directory_that_lacks_something(tmp_path: Path, name: str) -> None:
    (save_tiny(tmp_path) / name).unlink()
    error = refused(tmp_path)
    assert (error.field, "cannot load" in error.problem) == ("parameters.model", True)


def test_weights_cut_short(tmp_path: Path) -> None:
    file = save_tiny(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert refused(tmp_path).field == "parameters.model"


def test_weights_of_which_some_are_missing(tmp_path: Path) -> None:
    """Transformers would make them up, and serve noise."""
    file = save_tiny(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.layer.1.attention.self.query.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    error = refused(tmp_path)
    assert error.field == "parameters.model"
    assert "encoder.layer.1.attention.self.query.weight" in error.problem


def test_a_pooler_may_be_missing(tmp_path: Path) -> None:
    """Sentence encoders often leave it out, and nothing reads it."""
    file = save_tiny(tmp_path) / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if "pooler" not in name}
    save_file(tensors, file, metadata={"format": "pt"})
    assert load(tmp_path).max_length == 48


# -- finding


def test_a_hub_id_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*args: Any, **kwargs: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    error = refused("somebody/some-model")
    assert (error.field, "no network" in error.problem) == ("parameters.model", True)


def test_a_hub_id_that_can(monkeypatch: pytest.MonkeyPatch, bert: Path) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(bert))
    assert load("somebody/some-model").directory == bert


@pytest.mark.parametrize("name", ["no_such_package", "no.such.package", "", "json.decoder", "sys"])
def test_a_package_that_is_not_there(name: str) -> None:
    assert refused(f"package:{name}").field == "parameters.model"


def test_a_package_with_no_model() -> None:
    assert "holds no model" in refused("package:json").problem
