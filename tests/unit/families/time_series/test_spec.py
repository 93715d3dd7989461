"""What the spec tells without loading anything: which models are of the family, and their width."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from series_fixtures import HIDDEN, MODELS, save_series_model

from fmplex import Classifier, Embedder, OwnForecaster, TaskProblem, Window
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


def test_heads_of_fine_tuned_models_become_decoders() -> None:
    head = {"head.linear.weight": torch.ones(3, HIDDEN), "head.linear.bias": torch.zeros(3)}
    labels = {"0": "calm", "1": "storm", "2": "rain"}
    config = {"model_type": "patchtst", "num_input_channels": 1, "id2label": labels, "pooling_type": "max"}
    found = SPEC.carried_over({**config, "architectures": ["PatchTSTForClassification"]}, head)
    assert found.decoder == Classifier(["calm", "storm", "rain"], pooling="max")
    assert set(found.tensors) == {"weight", "bias"}
    own = SPEC.carried_over(
        {**config, "architectures": ["PatchTSTForPrediction"]}, {"head.projection.bias": head["head.linear.bias"]}
    )
    assert own.decoder == OwnForecaster(head="task")
    assert SPEC.carried_over({**config, "architectures": ["PatchTSTForPretraining"]}, head).decoder == Embedder()
    for made, changes in (("ForRegression", {}), ("ForClassification", {"num_input_channels": 3})):
        with pytest.raises(ValueError, match="is none that a decoder here computes"):
            SPEC.carried_over({**config, **changes, "architectures": [f"PatchTST{made}"]}, head)
    with pytest.raises(ValueError, match="pooling_type is None"):
        SPEC.carried_over({**config, "pooling_type": None, "architectures": ["PatchTSTForClassification"]}, head)


def test_columns_are_channels_and_options_of_texts_are_refused() -> None:
    assert SPEC.encoder_for(["a", "b"], {}) == Window()
    with pytest.raises(TaskProblem, match="reads numbers: prefix are of texts"):
        SPEC.encoder_for([], {"prefix": "query: "})
