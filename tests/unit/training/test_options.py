"""Options of fit: checked before anything else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from task_fixtures import (
    labelled,
    spam,
)

from fmplex import (
    Backbone,
    TaskProblem,
)
from fmplex.training.options import FitOptions


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"parts": "all"}, "Say both"),
        ({"epochs": 0}, "epochs is 0. Give at least 1"),
        ({"learning_rate": 3.0}, "Give a number between 0 and 1"),
        ({"warmup": 1.0}, "warmup is"),
        ({"rate": 1.0}, "fit has no option rate"),
        ({"precision": "int4"}, "Say auto"),
    ],
)
def test_bad_settings_are_named(backbone: Backbone, options: dict[str, Any], match: str) -> None:
    with pytest.raises(TaskProblem, match=match):
        spam(backbone).fit(*labelled(20), progress=False, **options)


def test_a_checkpoint_is_compared_by_what_shapes_the_weights() -> None:
    one = FitOptions.of({"epochs": 5, "checkpoint": Path("a"), "progress": False, "pack_tokens": 64})
    other = FitOptions.of({"epochs": 5, "checkpoint": Path("b")})
    assert one.shaping() == other.shaping()
    assert one.shaping() != FitOptions.of({"epochs": 6}).shaping()
    assert "checkpoint" not in one.shaping()
