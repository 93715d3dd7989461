"""Epochs of steps: seeds, accumulation, early stopping, and what is fitted first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from task_fixtures import (
    fitted,
    labelled,
    numbered,
    spam,
)

from fmplex import (
    Backbone,
    Classifier,
    LoRA,
    Regressor,
    Task,
    TaskProblem,
)


def test_a_seed_gives_the_same_weights(backbone: Backbone) -> None:
    rows = labelled(80)
    runs = [
        fitted(spam(backbone, adapter=LoRA(r=4, dropout=0.2)), rows, validation=0.2, seed=seed) for seed in (1, 1, 2)
    ]
    one, other, third = (task.fitted.head["weight"] for task in runs)
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def test_accumulation_is_a_larger_batch(backbone: Backbone) -> None:
    rows = labelled(64)
    decoder = Classifier(["ham", "spam"], dropout=0.0)
    tasks = []
    for options in ({"batch_size": 32}, {"batch_size": 32, "accumulation": 1}):
        tasks.append(fitted(Task("a", backbone, adapter=LoRA(r=2), decoder=decoder), rows, epochs=1, **options))
    assert torch.equal(tasks[0].fitted.head["weight"], tasks[1].fitted.head["weight"])
    history = fitted(
        Task("a", backbone, adapter=LoRA(r=2), decoder=decoder), rows, batch_size=8, accumulation=4
    ).history
    assert history is not None
    assert len(history.steps) == 16


def test_early_stopping_keeps_the_best(backbone: Backbone) -> None:
    task = spam(backbone, adapter=LoRA(r=4))
    history = task.fit(*labelled(60), validation=0.3, epochs=30, learning_rate=0.5, patience=2, progress=False)
    assert history.stopped_early
    assert len(history.training) < 30
    assert history.head_only is not None
    kept = min([history.head_only, *history.validation])
    assert history.best_epoch == ([history.head_only, *history.validation]).index(kept)


def test_the_head_alone_and_then_both(backbone: Backbone) -> None:
    task = spam(backbone, adapter=LoRA(r=4))
    fitted(task, labelled(80), parts="decoder")
    head = task.fitted.head["weight"].clone()
    state = task.fitted.adapter
    assert state is not None
    assert all(not tensor.any() for name, tensor in state.tensors.items() if "lora_B" in name)
    fitted(task, labelled(80), parts="adapter", learning_rate=1e-2)
    assert torch.equal(head, task.fitted.head["weight"])
    assert task.fitted.adapter is not None
    assert any(tensor.any() for name, tensor in task.fitted.adapter.tensors.items() if "lora_B" in name)


def test_further_training_goes_on_from_what_is_saved(root: Path, backbone: Backbone) -> None:
    first = fitted(spam(backbone, adapter=LoRA(r=4)), labelled(80), learning_rate=1e-2)
    first.save()
    again = Task.load(root / "spam", backbone)
    before = again.outputs("w1 w2")[0]["SCORES"]
    history = again.fit(*labelled(80), epochs=1, learning_rate=1e-9, progress=False)
    assert np.allclose(again.outputs("w1 w2")[0]["SCORES"], before, atol=1e-4)
    assert history.steps[0] < 0.7


def test_a_loss_that_explodes_is_an_error(backbone: Backbone) -> None:
    texts, values = numbered(40)
    task = Task("r", backbone, adapter=LoRA(r=2), decoder=Regressor())
    with pytest.raises(TaskProblem, match="Lower learning_rate"):
        task.fit(texts, [value * 1e30 for value in values], learning_rate=0.9, epochs=5, progress=False)
