"""Fine-tuned models, as transformers saves them, become tasks that answer as transformers does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_fixtures import tiny_model, tiny_tokenizer
from series_fixtures import CHANNELS, save_series_model, tiny_series_model
from task_fixtures import labelled
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ViTForImageClassification,
)
from typer.testing import CliRunner
from vision_fixtures import encoded, picture, tiny_vision

from fmplex import Backbone, Task
from fmplex.cli.app import app
from fmplex.importing.checkpoint import Checkpoint
from fmplex.importing.fleet import Found, Importer, chosen_base
from fmplex_backend.errors import TaskProblem
from fmplex_backend.repository.writer import ModelRepository

Change = Callable[[Any], None]


def merged(rank: int, *targets: str) -> Change:
    """Add a product of that rank to some Linear weights, as merging LoRA does."""

    def change(model: Any) -> None:
        for name, module in model.named_modules():
            if name.endswith(targets or ("query", "value")):
                rows, columns = module.weight.shape
                module.weight += 0.1 * torch.randn(rows, rank) @ torch.randn(rank, columns)

    return change


def everything(model: Any) -> None:
    """Change all weights, as training all of them does."""
    for parameter in model.parameters():
        parameter += 0.02 * torch.randn(parameter.shape)


def nothing(model: Any) -> None:
    """A head alone."""


def finetuned(directory: Path, change: Change, kind: str = "bert", seed: int = 1, **config: Any) -> Path:
    """A sequence classifier on the tiny model, whose backbone is changed."""
    base = tiny_model(kind)
    settings = base.config
    for name, value in ({"num_labels": 3} | config).items():
        setattr(settings, name, value)
    torch.manual_seed(seed)
    whole = AutoModelForSequenceClassification.from_config(settings).eval().requires_grad_(False)
    getattr(whole, whole.base_model_prefix).load_state_dict(base.state_dict(), strict=False)
    for name, parameter in whole.named_parameters():
        if "classifier" in name or "pooler" in name:
            parameter.normal_()
    change(getattr(whole, whole.base_model_prefix))
    whole.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def scores(directory: Path, texts: list[str]) -> Any:
    """As transformers computes them."""
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokens = tiny_tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits
    return torch.softmax(logits, -1).numpy()


def imported(base: Path, *directories: Path, **options: Any) -> list[Found]:
    checkpoint = Checkpoint(base)
    shared = Backbone(base, family=checkpoint.family, dtype="float32", device="cpu")
    importer = Importer(shared, **({"tolerance": 1e-4} | options))
    return [importer.found(Checkpoint(each), each.name) for each in directories]


def answers(found: Found, texts: list[str]) -> Any:
    assert found.task is not None, found.reason
    return np.stack([each["SCORES"] for each in found.task.outputs(texts)])


def test_six_models_of_one(tmp_path: Path) -> None:
    """Five merged LoRAs and a full fine-tune, from the model that they began as, and without it."""
    tiny_model("bert").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    lora = [finetuned(tmp_path / f"lora{n}", merged(2, "query", "value"), seed=n) for n in range(5)]
    full = finetuned(tmp_path / "full", everything, seed=9)
    texts, _ = labelled(9)
    found = imported(tmp_path / "base", *lora, full)
    for each, directory in zip(found, [*lora, full], strict=True):
        assert np.allclose(answers(each, texts), scores(directory, texts), atol=1e-5)
        assert each.error <= 1e-5
    assert [each.extension.described() for each in found[:5]] == ["LoRA of rank 2 on 4 layers"] * 5
    assert not found[5].extension.lora
    assert "embeddings" in found[5].extension.modules

    checkpoints = [Checkpoint(each) for each in [full, *lora]]
    assert chosen_base(checkpoints) is checkpoints[1]
    among = imported(lora[0], *lora, full)
    assert [each.extension.described() for each in among[:5]] == ["none", *["LoRA of rank 4 on 4 layers"] * 4]
    for each, directory in zip(among, [*lora, full], strict=True):
        assert np.allclose(answers(each, texts), scores(directory, texts), atol=1e-5)


@pytest.mark.parametrize("kind", ["albert", "distilbert", "electra", "mpnet", "roberta"])
def test_other_architectures(tmp_path: Path, kind: str) -> None:
    """Full fine-tunes, so that every module that may differ does; MPNet's positions are shared by all rows."""
    heads = finetuned(tmp_path / "head", nothing, kind)
    full = finetuned(tmp_path / "full", everything, kind)
    texts, _ = labelled(5)
    found = imported(heads, heads, full)
    assert not found[0].extension
    assert np.allclose(answers(found[0], texts), scores(heads, texts), atol=1e-5)
    if kind == "mpnet":
        assert found[1].reason == "its encoder.relative_attention_bias differs, which all rows of a batch share"
    else:
        assert np.allclose(answers(found[1], texts), scores(full, texts), atol=1e-5)


def test_a_higher_rank_is_cut_on_request_and_its_error_said(tmp_path: Path) -> None:
    base, wide = finetuned(tmp_path / "base", nothing), finetuned(tmp_path / "wide", merged(9))
    (exact,) = imported(base, wide)
    assert exact.extension.described() == "LoRA of rank 9 on 4 layers"
    (refused,) = imported(base, wide, most=3, cuts=True)
    assert refused.task is None
    assert "more than --tolerance 0.0001: raise --rank" in refused.reason
    (cut,) = imported(base, wide, most=3, cuts=True, tolerance=10)
    assert 0 < cut.extension.left_out < 1
    texts, _ = labelled(5)
    assert np.abs(answers(cut, texts) - scores(wide, texts)).max() > 1e-4


def test_bfloat16_rounds_what_is_compared(tmp_path: Path) -> None:
    """The rounding of a stored product is noise, not rank."""
    base, changed = finetuned(tmp_path / "base", nothing), tmp_path / "changed"
    finetuned(changed, merged(2))
    for directory in (base, changed):
        whole = AutoModelForSequenceClassification.from_pretrained(directory).bfloat16()
        whole.save_pretrained(directory)
    (found,) = imported(base, changed, tolerance=0.05)
    assert found.extension.described() == "LoRA of rank 2 on 4 layers"


def test_kinds_of_heads(tmp_path: Path) -> None:
    one = finetuned(tmp_path / "one", nothing, num_labels=1)
    many = finetuned(tmp_path / "many", nothing, problem_type="multi_label_classification")
    named = finetuned(tmp_path / "named", nothing, id2label={0: "a", 1: "b", 2: "c"})
    twice = finetuned(tmp_path / "twice", nothing, id2label={0: "a", 1: "b", 2: "a"})
    tags = AutoModelForTokenClassification.from_config(tiny_model("bert").config)
    tags.bert.load_state_dict({k: v for k, v in tiny_model("bert").state_dict().items() if "pooler" not in k})
    tags.save_pretrained(tmp_path / "tags")
    tiny_tokenizer().save_pretrained(tmp_path / "tags")
    found = imported(one, one, many, named, twice, tmp_path / "tags")
    assert [each.carried.decoder.kind if each.carried else None for each in found] == [
        "regression",
        "multi-label",
        "classification",
        None,
        "token-classification",
    ]
    assert found[2].carried is not None
    assert found[2].carried.decoder.label_names == ["a", "b", "c"]
    assert found[3].reason == "id2label gives a to several outputs. Correct its config.json"
    assert all(each.task for each in (*found[:3], found[4]))


def test_heads_that_no_decoder_computes(tmp_path: Path) -> None:
    for model in (
        BertForQuestionAnswering(tiny_model("bert").config),
        ModernBertForSequenceClassification(tiny_model("modernbert").config),
    ):
        directory = tmp_path / type(model).__name__
        model.save_pretrained(directory)
        tiny_tokenizer().save_pretrained(directory)
        (found,) = imported(directory, directory)
        assert found.task is None
        assert "is none that a decoder here computes" in found.reason


def test_pictures(tmp_path: Path) -> None:
    base, processor = tiny_vision("vit")
    for name, change in (("head", nothing), ("lora", merged(2, "q_proj", "v_proj")), ("full", everything)):
        torch.manual_seed(len(name))
        whole = ViTForImageClassification(base.config).eval().requires_grad_(False)
        whole.vit.load_state_dict(base.state_dict(), strict=False)
        change(whole.vit)
        whole.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    paths = [tmp_path / name for name in ("head", "lora", "full")]
    found = imported(paths[0], *paths)
    pixels = [picture(seed) for seed in range(3)]
    for each, path in zip(found, paths, strict=True):
        assert each.task is not None, each.reason
        whole = ViTForImageClassification.from_pretrained(path).eval()
        with torch.inference_mode():
            logits = whole(**processor(pixels, return_tensors="pt")).logits
        have = np.stack([one["SCORES"] for one in each.task.outputs([encoded(one) for one in pixels])])
        assert np.allclose(have, torch.softmax(logits, -1).numpy(), atol=1e-5)
    assert [each.extension.described()[:14] for each in found[:2]] == ["none", "LoRA of rank 2"]


@pytest.mark.parametrize("kind", ["patchtst", "timesfm", "mixer", "channel-attention", "mixed-channels"])
def test_forecast_heads(kind: str, tmp_path: Path) -> None:
    """Models that mix channels are compared on as many as they have."""
    base = save_series_model(tmp_path / "base", kind)
    whole = tiny_series_model(kind)
    for name, parameter in whole.named_parameters():
        if name.startswith(("head.", "horizon_ff_layer.")):
            parameter.normal_(std=0.1)
    whole.save_pretrained(tmp_path / "other")
    for found in imported(base, base, tmp_path / "other"):
        assert found.task is not None, found.reason
        assert found.error <= 1e-5
        assert found.extension.described() == "none"
        assert found.task.encoder.channels == CHANNELS.get(kind)


# -- the command


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    return root


def run(repository: Path, *arguments: Any) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["import", *map(str, arguments), "--repository", str(repository)])
    return done.exit_code, done.output


def test_the_command_saves_what_answers_alike(tmp_path: Path, repository: Path) -> None:
    good, other = finetuned(tmp_path / "good one", nothing), finetuned(tmp_path / "other", merged(2), seed=2)
    code, said = run(repository, good, other, "--backbone", "shared", "--dry-run")
    assert (code, list(repository.iterdir())) == (0, [])
    assert "nothing saved" in said
    code, said = run(repository, good, other, "--backbone", "shared", "--json")
    assert code == 0
    document = json.loads(said)
    assert document["saved"] == ["good-one", "other"]
    assert document["bytes_together"] < document["bytes_apart"]
    tasks = ModelRepository(repository).tasks()
    assert {name: backbone for name, (backbone, _) in tasks.items()} == {"good-one": "shared", "other": "shared"}
    texts, _ = labelled(4)
    loaded = Task.load(repository / "other", Backbone("shared", repository=repository, dtype="float32"))
    have = np.stack([each["SCORES"] for each in loaded.outputs(texts)])
    assert np.allclose(have, scores(other, texts), atol=1e-5)

    later = finetuned(tmp_path / "later", merged(1), seed=3)
    code, said = run(repository, later, "--backbone", "shared")
    assert (code, "LoRA_of_rank_1" in said or "LoRA of rank 1" in said) == (0, True)


def test_the_command_says_what_it_leaves_out(tmp_path: Path, repository: Path) -> None:
    good, bad = finetuned(tmp_path / "good", nothing), tmp_path / "bad"
    BertForQuestionAnswering(tiny_model("bert").config).save_pretrained(bad)
    tiny_tokenizer().save_pretrained(bad)
    code, said = run(repository, good, bad, "--backbone", "shared")
    assert code == 1
    assert "bad: not imported: the head of a bert made ForQuestionAnswering" in said
    assert list(ModelRepository(repository).tasks()) == ["good"]


def test_wrong_arguments_are_named(tmp_path: Path, repository: Path) -> None:
    good = finetuned(tmp_path / "good", nothing)
    distil = finetuned(tmp_path / "distil", nothing, "distilbert")
    empty, adapter = tmp_path / "empty", tmp_path / "adapter"
    empty.mkdir()
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    for arguments, reason in (
        ((tmp_path / "none",), "there is no directory"),
        ((empty,), "has no weights as safetensors"),
        ((adapter,), "holds a PEFT adapter"),
        ((good, distil), "they share nothing"),
        ((good, good), "several models would be called good"),
        ((good, "--names", "a,b"), "2 names are given for 1 models"),
    ):
        code, said = run(repository, *arguments, "--backbone", "shared")
        assert code == 1
        assert reason in " ".join(said.split())
    run(repository, good, "--backbone", "shared")
    code, said = run(repository, good, "--backbone", "shared")
    assert (code, "exists. Choose another name" in said) == (1, True)


def test_a_model_of_another_size_says_so(tmp_path: Path) -> None:
    good, other = finetuned(tmp_path / "good", nothing), tmp_path / "other"
    whole = AutoModelForSequenceClassification.from_pretrained(good)
    whole.resize_token_embeddings(80)
    whole.save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    (found,) = imported(good, other)
    assert "it is of another size, or has other tokens" in found.reason
    (other / "model.safetensors").write_bytes(b"12345678")
    cut = Checkpoint(other)
    with pytest.raises(TaskProblem, match="is not readable as safetensors"):
        cut.matrices()
