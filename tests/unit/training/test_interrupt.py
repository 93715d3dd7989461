"""Ctrl-C in a training: held back until a step is whole, then resumed from."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from task_fixtures import labelled, spam

from fmplex import Backbone, LoRA
from fmplex.training.interrupt import Interrupted, InterruptHeld
from fmplex.training.progress import Status

OPTIONS: dict[str, Any] = {"epochs": 3, "batch_size": 8, "validation": 0.25}


def pressed_in(phase: str) -> Any:
    """A report that presses Ctrl-C once, in that phase."""
    pressed = []

    def report(status: Status) -> None:
        if status.phase == phase and status.loss is not None and not pressed:
            pressed.append(status)
            signal.raise_signal(signal.SIGINT)

    return report


def test_it_goes_on_from_there_to_the_same_weights(backbone: Backbone, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    whole = spam(backbone, adapter=LoRA(r=2, dropout=0.2))
    whole.fit(*labelled(60), **OPTIONS)
    task = spam(backbone, adapter=LoRA(r=2, dropout=0.2))
    with pytest.raises(Interrupted, match=rf"in epoch 2 of 3, step \d of 6. It goes on from the checkpoint {folder}"):
        task.fit(*labelled(60), checkpoint=folder, progress=pressed_in("epoch 2 of 3"), **OPTIONS)
    assert task.history is None
    told: list[Status] = []
    task.fit(*labelled(60), checkpoint=folder, progress=told.append, **OPTIONS)
    assert "epoch 1 of 3" not in {status.phase for status in told}
    assert told[-1].done == pytest.approx(1.0)
    assert torch.equal(task.fitted.head["weight"], whole.fitted.head["weight"])
    assert not folder.exists()


def test_a_second_one_is_not_held_back() -> None:
    with InterruptHeld() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.came
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_signals_are_left_alone_where_they_are_not_ours() -> None:
    before = signal.getsignal(signal.SIGINT)
    with InterruptHeld(False):
        assert signal.getsignal(signal.SIGINT) is before
    held: list[bool] = []

    def elsewhere() -> None:
        with InterruptHeld() as interrupt:
            held.append(interrupt.wanted)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert held == [False]
    with InterruptHeld():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
