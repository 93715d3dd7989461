"""What the spec tells without loading anything: which models are of the family, and their width."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from series_fixtures import HIDDEN, MODELS, save_series_model

from fmplex import TaskProblem, Window
from fmplex_backend.families.time_series.spec import TimeSeriesModels
from fmplex_backend.repository.backbone import family_of
from fmplex_backend.repository.config import load_backbone_config

SPEC = TimeSeriesModels()


@pytest.mark.parametrize("kind", MODELS)
def test_saved_models_are_known_by_their_config(kind: str, tmp_path: Path) -> None:
    directory = save_series_model(tmp_path / "model", kind)
    assert family_of("model", json.loads((directory / "config.json").read_text())) == "time-series"
    parameters = load_backbone_config(tmp_path, {"model": str(directory), "family": "time-series"})
    assert SPEC.hidden_width(parameters, tmp_path / "config.pbtxt") == HIDDEN
    assert str(SPEC.fingerprint(parameters, tmp_path / "config.pbtxt")).startswith("sha256:")


def test_columns_are_channels_and_options_of_texts_are_refused() -> None:
    assert SPEC.encoder_for(["a", "b"], {}) == Window()
    with pytest.raises(TaskProblem, match="reads numbers: prefix are of texts"):
        SPEC.encoder_for([], {"prefix": "query: "})
