"""Tiny Time Mixer r2, real weights: one backbone, and the heads of two fine-tunings, each equal to its original."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from series_fixtures import ask, filled, finished, series, series_runtime, serve

from fmplex import Backbone
from fmplex.importing.checkpoint import Checkpoint
from fmplex.importing.fleet import Importer
from fmplex_backend.errors import InvalidRequest, TaskRefused
from fmplex_backend.families.time_series.runtime import TimeSeriesRuntime

ROOT = Path(__file__).parents[4]
PLACES = [Path(os.environ.get("FMPLEX_TEST_DATA", ROOT)), *(above / "shared" / "data" for above in ROOT.parents[:2])]
FOLDER = "model_ttm_r2_512_96_finetuned"
WEIGHTS = next((place / FOLDER for place in PLACES if (place / FOLDER).is_dir()), Path(FOLDER))
VARIANT = "variant_3a2800f_decoder_head_only.safetensors"
CHANNELS, CONTEXT, STEPS = 31, 512, 96
pytestmark = [
    pytest.mark.skipif(not WEIGHTS.is_dir(), reason=f"no {FOLDER} beside the checkout or in FMPLEX_TEST_DATA"),
    pytest.mark.skipif(
        importlib.util.find_spec("tsfm_public") is None, reason="pip install --no-deps granite-tsfm==0.3.11"
    ),
    pytest.mark.filterwarnings("ignore"),  # of granite-tsfm's own
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first of the two."""
    folder = tmp_path_factory.mktemp("ttm")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(WEIGHTS / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def runtime(model: Path) -> TimeSeriesRuntime:
    return series_runtime(model)


def original(model: Path, tensors: dict[str, Any]) -> Any:
    """The whole model of granite-tsfm, with other tensors in it."""
    from tsfm_public.models.tinytimemixer import TinyTimeMixerForPrediction

    whole = TinyTimeMixerForPrediction.from_pretrained(model).eval()
    whole.load_state_dict(tensors, strict=False)
    return whole


@pytest.mark.parametrize("head", ["backbone", "task"])
def test_each_head_answers_as_its_original(head: str, model: Path, runtime: TimeSeriesRuntime, tmp_path: Path) -> None:
    decoder: dict[str, Any] = {"kind": "own-forecast", "head": head}
    tensors: dict[str, Any] = {}
    if head == "task":
        tensors = load_file(WEIGHTS / VARIANT)
        (tmp_path / "tuned").mkdir()
        shutil.copy(WEIGHTS / VARIANT, tmp_path / "tuned" / "decoder.safetensors")
    vfm = serve(runtime, tmp_path / "tuned", decoder=decoder, encoder={"channels": CHANNELS})
    item = series(1, 700, CHANNELS) / 50
    request = ask(runtime, vfm, item)
    found = finished(runtime, request)["FORECAST"][0]
    with torch.no_grad():
        want = original(model, tensors)(past_values=torch.from_numpy(item[None, -CONTEXT:])).prediction_outputs[0]
    assert found.shape == (STEPS, 1), "it forecasts the first channel"
    np.testing.assert_allclose(found, want.numpy(), atol=1e-5)


def test_both_are_imported_as_tasks_on_one_backbone(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(model / "config.json", other)
    save_file(load_file(model / "model.safetensors") | load_file(WEIGHTS / VARIANT), other / "model.safetensors")
    importer = Importer(Backbone(model, family="time-series", dtype="float32"), tolerance=1e-5)
    item = series(1, 700, CHANNELS) / 50
    for directory in (model, other):
        found = importer.found(Checkpoint(directory), directory.name)
        assert found.task is not None, found.reason
        assert found.extension.described() == "none"
        (forecast,) = found.task.outputs(item)
        with torch.no_grad():
            want = original(directory, {})(past_values=torch.from_numpy(item[None, -CONTEXT:])).prediction_outputs[0]
        np.testing.assert_allclose(forecast["FORECAST"], want.numpy(), atol=1e-5)


def test_gaps_and_short_series_are_masked(model: Path, runtime: TimeSeriesRuntime, tmp_path: Path) -> None:
    vfm = serve(runtime, tmp_path / "own", decoder={"kind": "own-forecast"}, encoder={"channels": CHANNELS})
    item = series(2, 300, CHANNELS, missing=0.1) / 50
    request = ask(runtime, vfm, item)
    values, known = filled(item, CONTEXT)
    with torch.no_grad():
        want = original(model, {})(
            past_values=torch.from_numpy(values)[None], past_observed_mask=torch.from_numpy(known).float()[None]
        ).prediction_outputs[0]
    np.testing.assert_allclose(finished(runtime, request)["FORECAST"][0], want.numpy(), atol=1e-5)


def test_a_head_that_mixes_channels_wants_them(runtime: TimeSeriesRuntime, tmp_path: Path) -> None:
    with pytest.raises(TaskRefused, match=r"encoder\.channels: it is None, and the head sees 31 channels at once"):
        serve(runtime, tmp_path / "any", decoder={"kind": "own-forecast"})
    long = {"kind": "own-forecast", "horizon": STEPS + 1}
    with pytest.raises(
        TaskRefused, match=r"decoder\.horizon: it is 97; the head forecasts 96 steps of 1 channels alone"
    ):
        serve(runtime, tmp_path / "long", decoder=long, encoder={"channels": CHANNELS})
    vfm = serve(runtime, tmp_path / "vector")  # the backbone by itself takes any number
    ask(runtime, vfm, series(1, 100, 2))
    with pytest.raises(InvalidRequest, match="at least 2 are needed"):
        ask(runtime, vfm, series(1, 1, 2))
