"""What task.json and a backbone's parameters may say; every error names file, field and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import text_task

from fmplex_backend.config import load_backbone_config, load_task_config
from fmplex_backend.errors import BackboneRefused, TaskRefused

EMBEDDING = {"kind": "embedding"}
LABELS = ["a", "b"]


def read(directory: Path, document: Any) -> Any:
    file = directory / "task.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return load_task_config(file)


def refused(directory: Path, document: Any) -> TaskRefused:
    with pytest.raises(TaskRefused) as caught:
        read(directory, document)
    assert caught.value.file == str(directory / "task.json")
    assert caught.value.remedy
    return caught.value


# -- task.json


def test_what_is_left_out_has_defaults(tmp_path: Path) -> None:
    task = read(tmp_path, text_task(EMBEDDING))
    assert (task.adapter, task.backbone, task.encoder.prefix, task.encoder.max_length) == (None, None, "", None)
    assert (task.decoder.pooling, task.decoder.normalize) == ("mean", True)


def test_all_that_may_be_said(tmp_path: Path) -> None:
    document = text_task(
        {"kind": "multi-label", "labels": LABELS, "threshold": 0.3, "weights": "h.safetensors", "pooling": "cls"},
        description="what",
        backbone={"model": "m", "fingerprint": "sha256:1"},
        encoder={"kind": "text", "prefix": "q: ", "max_length": 12},
        adapter={"kind": "peft", "path": "lora"},
        metrics={"accuracy": 0.9, "rows": 10, "set": "dev"},
    )
    task = read(tmp_path, document)
    assert (task.encoder.max_length, task.adapter.path, task.decoder.threshold) == (12, "lora", 0.3)
    assert json.loads(task.model_dump_json())["backbone"] == document["backbone"]


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(TaskRefused, match=r"task\.json: \(whole file\): there is no such file\. Every version"):
        load_task_config(tmp_path / "task.json")


@pytest.mark.parametrize("text", ["", "{", "nonsense", '{"family": }', "\ufeff{}"])
def test_no_json(tmp_path: Path, text: str) -> None:
    assert "not readable as JSON" in refused(tmp_path, text).problem


def test_no_text(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_bytes(b'{"family": "\xff"}')
    with pytest.raises(TaskRefused, match="not readable as JSON"):
        load_task_config(tmp_path / "task.json")


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ([], "(whole file)"),
        ({}, "family"),
        ({"family": "text-encoder"}, "decoder"),
        (text_task(EMBEDDING, family="causal-lm"), "family"),
        (text_task(EMBEDDING, adaptor={}), "adaptor"),
        (text_task({"kind": "sorcery"}), "decoder"),
        (text_task({}), "decoder"),
        (text_task({"kind": "embedding", "pooling": "sum"}), "decoder.embedding.pooling"),
        (text_task({"kind": "classification"}), "decoder.classification.labels"),
        (text_task({"kind": "classification", "labels": []}), "decoder.classification.labels"),
        (text_task({"kind": "classification", "labels": "ab"}), "decoder.classification.labels"),
        (text_task({"kind": "similarity", "labels": ["a", "a"]}), "decoder.similarity"),
        (text_task({"kind": "multi-label", "labels": LABELS, "threshold": 2}), "decoder.multi-label.threshold"),
        (text_task({"kind": "regression", "activation": "swish"}), "decoder.regression.activation"),
        (text_task({"kind": "token-classification", "labels": LABELS, "pooling": "cls"}), "decoder.token-"),
        (text_task(EMBEDDING, encoder={"kind": "text", "max_length": 3}), "encoder.max_length"),
        (text_task(EMBEDDING, encoder={"max_length": "long"}), "encoder.max_length"),
        (text_task(EMBEDDING, adapter={"kind": "magic"}), "adapter.kind"),
        (text_task(EMBEDDING, backbone={}), "backbone.model"),
    ],
)
def test_a_field_that_is_wrong_is_named(tmp_path: Path, document: Any, field: str) -> None:
    assert refused(tmp_path, document).field.startswith(field)


def test_the_message_says_what_was_found(tmp_path: Path) -> None:
    error = refused(tmp_path, text_task({"kind": "sorcery"}))
    assert "sorcery" in error.problem
    assert "'token-classification'" in error.problem
    assert "given twice: ['a']" in refused(tmp_path, text_task({"kind": "similarity", "labels": ["a", "a"]})).problem


# -- a backbone's parameters


def test_a_backbones_parameters(tmp_path: Path) -> None:
    parameters = {"model": "m", "vfm_slots": "12", "max_queue": "7", "dtype": "bfloat16", "scheduler": "stfq"}
    config = load_backbone_config(tmp_path, parameters)
    assert (config.vfm_slots, config.max_queue, config.dtype, config.scheduler) == (12, 7, "bfloat16", "stfq")


def test_tritons_own_parameters_are_left_to_triton(tmp_path: Path) -> None:
    assert load_backbone_config(tmp_path, {"model": "m", "EXECUTION_ENV_PATH": "x"}).model == "m"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scheduler", "fair"),
        ("vfm_slots", "0"),
        ("vfm_slots", "many"),
        ("max_queue", "1.5"),
        ("dtype", "int8"),
        ("threads", "-1"),
        ("runtime", "vllm"),
        ("wieght", "3"),
    ],
)
def test_a_parameter_that_is_wrong_is_named(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(BackboneRefused) as caught:
        load_backbone_config(tmp_path / "config.pbtxt", {"model": "m", name: value})
    assert caught.value.field == f"parameters.{name}"
    assert caught.value.file == str(tmp_path / "config.pbtxt")
    assert value in caught.value.problem


def test_a_backbone_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(BackboneRefused, match=r"parameters\.model: field required"):
        load_backbone_config(tmp_path, {})
