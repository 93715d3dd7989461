"""The loss curves beside the weights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from task_fixtures import (
    fitted,
    labelled,
    spam,
)

from fmplex import (
    Backbone,
    LoRA,
)
from fmplex.training.curve import draw
from fmplex.training.state import History


def test_a_picture_of_the_losses_lies_beside_the_weights(backbone: Backbone) -> None:
    path = fitted(spam(backbone, adapter=LoRA(r=2)), labelled(40), validation=0.2).save()
    assert (path / "training.png").read_bytes().startswith(b"\x89PNG")


def test_a_history_without_validation_is_drawn_too(tmp_path: Path) -> None:
    draw(History(steps=[0.9, 0.5, 0.4], training=[0.6], head_only=0.7), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_nothing_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    draw(History(steps=[0.9], training=[0.9]), tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
