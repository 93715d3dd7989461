"""A backbone in this process: shared by tasks, never written to, found by name or directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from backend_fixtures import edit
from task_fixtures import (
    fitted,
    labelled,
    same_weights,
    spam,
    tiny_backbone,
    weights_of,
)

from fmplex import (
    IA3,
    Backbone,
    Classifier,
    DoRA,
    LoRA,
    Task,
    TaskProblem,
)
from fmplex_backend.families import precision


def test_training_never_writes_to_the_backbone(backbone: Backbone) -> None:
    before = weights_of(backbone)
    for adapter in (LoRA(r=4, targets=["query"]), DoRA(r=2, targets=["query"]), IA3(), None):
        task = fitted(spam(backbone, adapter=adapter), labelled(60), learning_rate=1e-2)
        task.predict("w1 w2")
    assert same_weights(before, weights_of(backbone))
    assert not any(parameter.requires_grad for parameter in backbone.for_training().parameters())


def test_many_tasks_on_one_backbone_in_memory(backbone: Backbone) -> None:
    adapters = [LoRA(r=2, targets=["query"]), LoRA(r=7, targets=["value"]), DoRA(r=2, targets=["query"]), None]
    tasks = [
        fitted(spam(backbone, adapter=each), labelled(60, seed), learning_rate=1e-2)
        for seed, each in enumerate(adapters)
    ]
    texts, _ = labelled(5, 9)
    first = [task.outputs(texts) for task in tasks]
    for task, expected in zip(reversed(tasks), reversed(first), strict=True):
        for one, other in zip(task.outputs(texts), expected, strict=True):
            assert np.allclose(one["SCORES"], other["SCORES"], atol=1e-6)


def test_a_backbone_that_is_not_there(root: Path) -> None:
    with pytest.raises(TaskProblem, match="there is no backbone 'nowhere' in"):
        _ = Backbone("./nowhere", repository=root, name="nowhere").hidden


def test_a_backbone_by_directory(root: Path, tmp_path: Path) -> None:
    task = fitted(
        Task(
            "spam",
            Backbone(tmp_path / "model", name="base", repository=root, device="cpu", dtype="float32"),
            decoder=Classifier(),
        ),
        labelled(40),
    )
    assert Task.load(task.save(root), tiny_backbone(root)).predict("w1") == task.predict("w1")


# -- dtypes


@pytest.fixture
def in_bfloat16(root: Path, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """Of a config that leaves the dtype to a device with bfloat16 in hardware."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    edit(root / "base" / "config.pbtxt", '"float32"', '"auto"')
    return tiny_backbone(root)


def test_tasks_run_in_what_is_served_and_are_fitted_in_float32(in_bfloat16: Backbone) -> None:
    task = fitted(spam(in_bfloat16, adapter=LoRA(r=4, targets=["query"])), labelled(60), learning_rate=1e-2)
    assert (in_bfloat16.runtime.dtype, in_bfloat16.fitting_runtime.dtype) == ("bfloat16", "float32")
    assert task.fitted.adapter is not None
    assert {each.dtype for each in (*task.fitted.adapter.tensors.values(), *task.fitted.head.values())} == {
        torch.float32
    }
    texts, _ = labelled(20, 9)
    task.predict(texts)
    assert {each.dtype for each in in_bfloat16.for_training().parameters()} == {torch.float32}


def test_answers_in_both_dtypes_are_close(root: Path, in_bfloat16: Backbone) -> None:
    exact = Backbone("base", repository=root, device="cpu", dtype="float32")
    rows, (texts, _) = labelled(60), labelled(20, 9)
    task = fitted(spam(exact, adapter=LoRA(r=4, targets=["query"])), rows, learning_rate=1e-2)
    saved = task.save(root)
    rounded = Task.load(saved, in_bfloat16)
    one, other = ([each["SCORES"] for each in own.outputs(texts)] for own in (task, rounded))
    assert np.allclose(one, other, atol=0.05)
    assert not np.array_equal(one, other)
    assert exact.runtime.fingerprint == in_bfloat16.runtime.fingerprint
    assert rounded.config().backbone == task.config().backbone


def test_a_config_that_says_its_dtype_is_fitted_in_it(root: Path) -> None:
    edit(root / "base" / "config.pbtxt", '"float32"', '"bfloat16"')
    backbone = tiny_backbone(root)
    assert backbone.fitting_runtime is backbone.runtime
    assert backbone.runtime.dtype == "bfloat16"


def test_float32_is_in_memory_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    edit(root / "base" / "config.pbtxt", '"float32"', '"auto"')
    backbone = tiny_backbone(root)
    assert backbone.fitting_runtime is backbone.runtime
    assert backbone.runtime.dtype == "float32"


def test_running_tasks_loads_no_second_copy(root: Path, in_bfloat16: Backbone) -> None:
    saved = fitted(spam(tiny_backbone(root)), labelled(40)).save(root)
    served = tiny_backbone(root)
    Task.load(saved, served).predict("w1 w2")
    assert "fitting_runtime" not in vars(served)


def test_adapter_memory_is_the_servers(in_bfloat16: Backbone) -> None:
    """There is no engine here that brings adapters back."""
    file = in_bfloat16.repository / "base" / "config.pbtxt"
    file.write_text(file.read_text() + 'parameters { key: "adapter_memory" value { string_value: "1" } }\n')
    limited = tiny_backbone(in_bfloat16.repository)
    assert limited.config.adapter_memory == 1
    tasks = [fitted(spam(limited, adapter=LoRA(r=2, targets=["query"])), labelled(40, seed)) for seed in range(2)]
    for task in (*tasks, *tasks):
        assert len(task.predict(["w1", "w2"])) == 2
