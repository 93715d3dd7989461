"""What is checked, split and weighed before the first step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from task_fixtures import (
    fitted,
    labelled,
    spam,
)

from fmplex import (
    Backbone,
    TaskProblem,
)


def test_class_weights_help_a_rare_label(backbone: Backbone) -> None:
    texts, labels = labelled(200)
    rare = [place for place, label in enumerate(labels) if label == "spam"][:6]
    chosen = [place for place, label in enumerate(labels) if label == "ham"] + rare
    rows = [texts[place] for place in chosen], [labels[place] for place in chosen]
    balanced = fitted(spam(backbone), rows, class_weights="balanced")
    named = fitted(spam(backbone), rows, class_weights={"spam": 20.0})
    plain = fitted(spam(backbone), rows)
    scores = [float(np.mean([each["SCORES"][1] for each in task.outputs(texts)])) for task in (plain, balanced, named)]
    assert scores[0] < scores[1]
    assert scores[0] < scores[2]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"parts": "encoder"}, "no weights to fit"),
        ({"parts": "adapter"}, "no adapter to fit"),
        ({"validation": 1.5}, "between 0 and 1"),
        ({"class_weights": "even"}, "must be 'balanced'"),
        ({"class_weights": {"eggs": 2}}, "names eggs"),
    ],
)
def test_what_does_not_suit_the_task_is_named(backbone: Backbone, options: dict[str, Any], match: str) -> None:
    with pytest.raises(TaskProblem, match=match):
        spam(backbone).fit(*labelled(20), progress=False, **options)
