"""Chronos-Bolt against the package's own pipeline, with random weights."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optional_series import needs_chronos
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from series_fixtures import ask, finished, series, series_runtime, serve

from fmplex import Backbone
from fmplex.importing.checkpoint import Checkpoint
from fmplex.importing.fleet import Importer
from fmplex_backend.errors import BackboneRefused, TaskRefused
from fmplex_backend.families.time_series.architectures import PATCHES
from fmplex_backend.families.time_series.huggingface import load_backbone
from fmplex_backend.families.time_series.parameters import TimeSeriesConfig
from fmplex_backend.families.time_series.runtime import TimeSeriesRuntime
from fmplex_backend.repository.backbone import family_of
from testing.adapters import save_adapter
from testing.optional_series import CHRONOS_BOLT, save_chronos_bolt

CONTEXT, PATCH, STEPS, WIDTH = 2048, 16, 64, 256
DECODER: dict[str, Any] = {"kind": "own-forecast", "quantiles": [0.1, 0.5, 0.9]}


def pipeline_of(directory: Path) -> Any:
    from chronos import ChronosBoltPipeline

    return ChronosBoltPipeline.from_pretrained(directory)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chronos_bolt(tmp_path_factory.mktemp("chronos-bolt"))


@pytest.fixture(scope="module")
def runtime(model: Path) -> TimeSeriesRuntime:
    return series_runtime(model)


@needs_chronos
@pytest.mark.parametrize(("steps", "missing"), [(CONTEXT, 0.0), (3000, 0.0), (100, 0.0), (500, 0.2), (5, 0.0)])
def test_forecasts_and_quantiles_are_the_pipelines(
    steps: int, missing: float, model: Path, runtime: TimeSeriesRuntime, tmp_path: Path
) -> None:
    """Of each channel by itself; the forecast is the median."""
    vfm = serve(runtime, tmp_path / "own", decoder=DECODER)
    item = series(steps, steps, 2, missing=missing) / 50
    found = finished(runtime, ask(runtime, vfm, item))
    quantiles, mean = pipeline_of(model).predict_quantiles(torch.from_numpy(item.T), STEPS, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(found["FORECAST"][0], mean.numpy().T, atol=1e-5)
    np.testing.assert_allclose(found["QUANTILES"][0], quantiles.permute(2, 1, 0).numpy(), atol=1e-5)
    assert np.ptp(found["QUANTILES"][0], axis=0).min() > 1e-3


@needs_chronos
def test_without_its_token_it_answers_as_the_pipeline_too(tmp_path: Path) -> None:
    directory = save_chronos_bolt(tmp_path / "model", use_reg_token=False, context_length=256)
    runtime, item = series_runtime(directory), series(1, 200) / 50
    vfm = serve(runtime, tmp_path / "own", decoder=DECODER)
    _, mean = pipeline_of(directory).predict_quantiles(torch.from_numpy(item.T), STEPS)
    np.testing.assert_allclose(finished(runtime, ask(runtime, vfm, item))["FORECAST"][0], mean.numpy().T, atol=1e-5)
    with pytest.raises(TaskRefused, match="no class token"):
        serve(runtime, tmp_path / "cls", decoder={"kind": "embedding", "pooling": "cls"})


@needs_chronos
@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_vectors_are_pooled_states_of_its_encoder(
    pooling: str, model: Path, runtime: TimeSeriesRuntime, tmp_path: Path
) -> None:
    vfm = serve(runtime, tmp_path / "own", decoder={"kind": "embedding", "normalize": False, "pooling": pooling})
    item = series(3, 100) / 50
    found = finished(runtime, ask(runtime, vfm, item))["EMBEDDING"][0]
    states, _ = pipeline_of(model).embed(torch.from_numpy(item.T))  # of 7 patches, and behind them its token
    assert states.shape == (1, 8, WIDTH)
    want = {"mean": states[0, :-1].mean(dim=0), "max": states[0, :-1].amax(dim=0), "cls": states[0, -1]}[pooling]
    np.testing.assert_allclose(found, want.numpy(), atol=1e-5)


@needs_chronos
def test_a_series_shorter_than_the_context_takes_the_tokens_of_its_own_patches(runtime: TimeSeriesRuntime) -> None:
    (short,), (whole,) = (runtime.preprocessor.rows(series(1, steps)) for steps in (100, 3000))
    assert (short.length, whole.length) == (7 + 1, CONTEXT // PATCH + 1)
    assert runtime.forward.packed([short]).shape == (2, 1, 7 * PATCH, 1)
    assert runtime.forward.packed([short, whole]).shape == (2, 2, CONTEXT, 1)
    alone, beside = (runtime.forward.pooled(rows, {PATCHES, "mean"}) for rows in ([short], [short, whole]))
    for kind in (PATCHES, "mean"):
        torch.testing.assert_close(alone[kind][0], beside[kind][0], atol=1e-5, rtol=0)


@needs_chronos
def test_lora_on_its_encoder_changes_its_forecasts_as_peft_does(
    model: Path, runtime: TimeSeriesRuntime, tmp_path: Path
) -> None:
    config, pipeline = LoraConfig(r=4, target_modules=["q", "v"], exclude_modules=r"decoder\..*"), pipeline_of(model)
    bare = pipeline_of(model).model
    bare._input_embed_layer = pipeline.model._input_embed_layer = "shared"  # PEFT asks for its embeddings
    save_adapter(tmp_path / "tuned" / "adapter", bare, config, seed=1, scale=0.8)
    vfm = serve(runtime, tmp_path / "tuned", decoder=DECODER, adapter={"kind": "peft"})
    item = series(4, 300) / 50
    found = finished(runtime, ask(runtime, vfm, item))["FORECAST"][0]
    plain = pipeline.predict_quantiles(torch.from_numpy(item.T), STEPS)[1].numpy().T
    PeftModel.from_pretrained(pipeline.model, str(tmp_path / "tuned" / "adapter")).eval()
    want = pipeline.predict_quantiles(torch.from_numpy(item.T), STEPS)[1].numpy().T
    np.testing.assert_allclose(found, want, atol=1e-4)
    assert np.abs(want - plain).max() > 5e-3


@needs_chronos
def test_a_task_brings_the_head_of_another_checkpoint(model: Path, tmp_path: Path) -> None:
    """One whose encoder was frozen while it was fine-tuned."""
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(model / "config.json", other)
    tensors = load_file(model / "model.safetensors")
    tuned = {name: each * 1.1 for name, each in tensors.items() if name.startswith(("decoder.block", "output_patch"))}
    save_file(tensors | tuned, other / "model.safetensors", {"format": "pt"})
    importer = Importer(Backbone(model, family="time-series", dtype="float32"), tolerance=1e-5)
    found = importer.found(Checkpoint(other), "other")
    assert found.task is not None, found.reason
    assert found.extension.described() == "none"
    item = series(5, 300) / 50
    (forecast,) = found.task.outputs(item)
    want = pipeline_of(other).predict_quantiles(torch.from_numpy(item.T), STEPS)[1].numpy().T
    np.testing.assert_allclose(forecast["FORECAST"], want, atol=1e-5)
    assert (
        np.abs(pipeline_of(model).predict_quantiles(torch.from_numpy(item.T), STEPS)[1].numpy().T - want).max() > 0.01
    )


@needs_chronos
def test_levels_that_its_head_lacks_are_refused(runtime: TimeSeriesRuntime, tmp_path: Path) -> None:
    with pytest.raises(TaskRefused, match=r"decoder\.quantiles: the head of a t5 does not have 0\.05, but 0\.1, 0\.2"):
        serve(runtime, tmp_path / "own", decoder={**DECODER, "quantiles": [0.05]})


@needs_chronos
def test_the_backbone_holds_its_encoder_alone(runtime: TimeSeriesRuntime) -> None:
    assert {name.partition(".")[0] for name in runtime.model.state_dict()} == {
        "shared",
        "input_patch_embedding",
        "encoder",
    }


def test_it_is_known_by_its_class_and_other_t5_models_are_not() -> None:
    config = {**CHRONOS_BOLT, "model_type": "t5", "architectures": ["ChronosBoltModelForForecasting"]}
    assert family_of("model", config) == "time-series"
    first = {**config, "architectures": ["T5ForConditionalGeneration"]}  # the first Chronos speaks in tokens
    with pytest.raises(Exception, match=r"\(t5\) is a model of no family here"):
        family_of("model", first)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**CHRONOS_BOLT, "model_type": "t5", "architectures": ["ChronosBoltModelForForecasting"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setitem(sys.modules, "chronos", None)
    monkeypatch.setitem(sys.modules, "chronos.chronos_bolt", None)
    with pytest.raises(BackboneRefused, match=r"a package that is not installed.*pip install 'fmplex\[chronos-bolt\]'"):
        load_backbone(TimeSeriesConfig(model=str(tmp_path)), tmp_path / "config.pbtxt", torch.device("cpu"))
