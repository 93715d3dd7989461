"""Scores of anomalies: what is unknown, what is not finite, and the bound they are measured by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fmplex import AnomalyDetector
from fmplex_backend.decoders.confidence import CONFIDENCE_WEIGHTS, Sample
from fmplex_backend.decoders.decoder import Encoded
from fmplex_backend.families.time_series.heads import MOST_DEVIATIONS
from fmplex_backend.families.time_series.preprocessing import Context
from fmplex_backend.families.time_series.series import Array

WIDTH, HORIZON = 4, 2


def scores(directory: Path, vector: float, came: list[float]) -> Array:
    """Of a channel of level 0 and scale 1, by a head that forecasts `WIDTH * vector`: [horizon]."""
    head = {"weight": torch.ones(HORIZON, WIDTH), "bias": torch.zeros(HORIZON)}
    save_file(head, directory / "decoder.safetensors")
    save_file({"bounds": torch.full((HORIZON,), 2.0)}, directory / CONFIDENCE_WEIGHTS)
    vectors = np.array([[[vector] * WIDTH + [0, 1]]], dtype=np.float32)  # [1, 1, d + 2]
    seen = np.ones((1, 1), dtype=np.float32)
    row = Context(seen, seen > 0, 1, 1, np.array(came, dtype=np.float32)[:, None])
    loaded = AnomalyDetector(HORIZON).load(directory, WIDTH)
    (found,) = loaded.decode(Encoded(vectors, [], [], np.zeros((1, 1), np.bool_), rows=[row]))["ANOMALY"]
    return found[:, 0]


@pytest.mark.parametrize(
    ("vector", "want"), [(0.5, [0, 2]), (np.nan, [0, np.nan]), (np.inf, [0, np.inf])], ids=["usual", "nan", "inf"]
)
def test_only_a_missing_value_has_no_score(vector: float, want: list[float], tmp_path: Path) -> None:
    np.testing.assert_array_equal(scores(tmp_path, vector, [np.nan, 6]), want)


def test_the_bound_is_of_errors_as_scores_have_them() -> None:
    """Of a flat line, errors are many of its scale, which targets of the fitting are not."""
    steps = np.full((100, 1, HORIZON), 5 * MOST_DEVIATIONS, dtype=np.float32)
    values = np.zeros((100, 1, HORIZON + 2), dtype=np.float32)
    values[..., -1] = 1  # the scale
    held = Sample(values, values, [each.T for each in steps])
    bounds = AnomalyDetector(HORIZON).confidence_of(held, [], held, None)["bounds"]
    np.testing.assert_allclose(bounds, [5 * MOST_DEVIATIONS] * HORIZON)
