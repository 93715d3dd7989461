"""What task.json and a backbone's parameters may say; every error names file, field and remedy."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import text_task

from fmplex_backend.errors import BackboneRefused, TaskRefused
from fmplex_backend.repository.config import load_backbone_config, load_task_config

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
        (text_task(EMBEDDING, family="no-such-family"), "family"),
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


def test_labels_given_twice_are_named_and_not_all_of_them(tmp_path: Path) -> None:
    labels = [f"label {number // 2}" for number in range(1000)]
    problem = refused(tmp_path, text_task({"kind": "similarity", "labels": labels})).problem
    assert "given twice: ['label 0', 'label 1'" in problem
    assert len(problem) < 600


def test_a_hundred_thousand_labels_are_read_in_a_moment(tmp_path: Path) -> None:
    """To compare each with each would take minutes."""
    labels = [f"label {number}" for number in range(100_000)]
    assert len(read(tmp_path, text_task({"kind": "classification", "labels": labels})).decoder.labels) == 100_000


@pytest.mark.parametrize(
    "put",
    [
        Path.mkdir,
        os.mkfifo,
        lambda file: file.symlink_to(file),
        lambda file: file.symlink_to("/dev/zero"),
        lambda file: (file.touch(), os.truncate(file, 1 << 30)),
        lambda file: file.write_text("[" * 100_000),
        lambda file: file.write_text('{"family": ' + "9" * 10_000 + "}"),
        lambda file: file.write_text('{"family": "text-encoder", "family": "text-encoder"}'),
        lambda file: file.write_text('{"family": "text-encoder", "decoder": {"kind": "\\ud800"}}'),
    ],
)
def test_what_is_no_file_or_no_json_is_refused(tmp_path: Path, put: Callable[[Path], Any]) -> None:
    put(tmp_path / "task.json")
    with pytest.raises(TaskRefused) as caught:
        load_task_config(tmp_path / "task.json")
    assert caught.value.file == str(tmp_path / "task.json")
    assert caught.value.remedy


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
        ("batch_efficiency", "0.5"),
        ("batch_efficiency", "95"),
        ("runtime", "vllm"),
        ("wieght", "3"),
    ],
)
def test_a_parameter_that_is_wrong_is_named(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(BackboneRefused) as caught:
        load_backbone_config(tmp_path / "config.pbtxt", {"model": "m", name: value})
    assert caught.value.field == f"parameters.{name}"
    assert caught.value.file == str(tmp_path / "config.pbtxt")
    assert value in caught.value.problem or caught.value.problem == "there is no such field"


def test_a_backbone_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(BackboneRefused, match=r"parameters\.model: it is missing"):
        load_backbone_config(tmp_path, {})


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (None, "(whole file): input should be an object (got null)"),
        ([], "(whole file): input should be an object (got [])"),
        ({"family": 5}, "family: input should be a valid string (got 5)"),
        ({"family": "text-encoder", "decoder": {"kind": None}}, "decoder: its kind should be 'embedding' or"),
        ({"family": "text-encoder", "decoder": {"kind": "magic"}}, "'plugin' (got 'magic')"),
        ({"family": "text-encoder", "decoder": {}}, "decoder: it has no kind"),
        ({"family": "text-encoder", "decoder": {"kind": "embedding"}, "encoder": 3}, "(got 3)"),
        ({"family": "text-encoder", "decoder": {"kind": "embedding"}, "more": 3}, "more: there is no such field"),
        ({"family": "text-encoder"}, "decoder: it is missing"),
    ],
)
def test_problems_are_said_in_the_words_of_json(tmp_path: Path, document: Any, said: str) -> None:
    file = tmp_path / "task.json"
    file.write_text(json.dumps(document))
    with pytest.raises(TaskRefused) as raised:
        load_task_config(file)
    assert said in str(raised.value)
    assert not re.search(r"None|dict|instance|tag\b", str(raised.value))


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ({"adapter": {"kind": "peft", "path": "/etc"}}, "adapter.path"),
        ({"adapter": {"kind": "peft", "path": "../../other/1/adapter"}}, "adapter.path"),
        ({"decoder": {"kind": "regression", "weights": "/etc/shadow"}}, "decoder.regression.weights"),
        ({"encoder": {"kind": "projection", "features": 2, "weights": "../x"}}, "encoder.weights"),
    ],
)
def test_paths_that_lead_out_of_the_version(tmp_path: Path, section: dict[str, Any], field: str) -> None:
    document = {"family": "text-encoder", "decoder": {"kind": "embedding"}, **section}
    with pytest.raises(TaskRefused, match="inside the version directory") as caught:
        read(tmp_path, document)
    assert caught.value.field == field
