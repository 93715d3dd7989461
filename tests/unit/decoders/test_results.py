"""Typed results of decoders."""

from __future__ import annotations

import numpy as np
import pytest

from fmplex_backend.decoders.results import Label, Values, scores_by_label, strings


def test_the_score_of_a_label() -> None:
    assert Label("b", {"a": 0.25, "b": 0.75}).score == 0.75


def test_one_value_is_asked_of_a_task_with_one_output() -> None:
    assert Values(np.float32([2.5])).value == 2.5
    with pytest.raises(ValueError, match="size 1"):
        _ = Values(np.float32([1, 2])).value


def test_strings_come_as_bytes_or_text() -> None:
    assert strings(np.array([["späm".encode()], ["ham"]], dtype=object)) == ["späm", "ham"]


def test_scores_without_labels_are_numbered() -> None:
    assert scores_by_label(["x", "y"], np.float32([1, 2])) == {"x": 1.0, "y": 2.0}
    assert list(scores_by_label([], np.float32([1, 2, 3]))) == ["0", "1", "2"]
