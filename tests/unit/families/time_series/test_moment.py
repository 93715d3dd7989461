"""MOMENT against its package, with random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from optional_series import needs_moment
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from series_fixtures import ask, finished, series, series_runtime, serve

from fmplex import Backbone, Forecaster, Imputer
from fmplex.importing.checkpoint import Checkpoint
from fmplex.importing.fleet import Importer
from fmplex_backend.errors import BackboneRefused, InvalidRequest, TaskRefused
from fmplex_backend.families.time_series.architectures import width_of
from fmplex_backend.families.time_series.huggingface import load_backbone
from fmplex_backend.families.time_series.parameters import TimeSeriesConfig
from fmplex_backend.families.time_series.runtime import TimeSeriesRuntime
from fmplex_backend.repository.backbone import family_of
from testing.adapters import save_adapter
from testing.optional_series import MOMENT, moment_of, save_moment

CONTEXT, PATCH, WIDTH = 512, 8, 512
Array = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[TimeSeriesRuntime, Any]:
    """MOMENT-1-small's shape, and as its package loads it."""
    directory = save_moment(tmp_path_factory.mktemp("moment"))
    return series_runtime(directory), moment_of(directory)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of its context and two small layers."""
    return save_moment(tmp_path_factory.mktemp("moment"), tiny=True)


@pytest.fixture(scope="module")
def runtime(model: Path) -> TimeSeriesRuntime:
    return series_runtime(model)


def given(item: Array) -> dict[str, Any]:
    """A series as the package takes it: zeros before its first step and in its gaps, which all channels share."""
    last = item[-CONTEXT:]
    whole = np.concatenate([np.full((CONTEXT - len(last), item.shape[1]), np.nan, dtype=np.float32), last])
    known = ~np.isnan(whole).any(axis=1)
    return {
        "x_enc": torch.from_numpy(np.nan_to_num(whole).T[None]),
        "input_mask": torch.from_numpy(known.astype(np.float32)[None]),
    }


def with_gaps(steps: int, *gaps: slice) -> Array:
    item = series(steps, steps, 2)
    for gap in gaps:
        item[gap] = np.nan
    return item


SERIES = [
    with_gaps(CONTEXT),
    with_gaps(700),
    with_gaps(101),
    with_gaps(9),
    with_gaps(CONTEXT, slice(40, 90), slice(300, 303)),
    with_gaps(333, slice(-2, None)),
]


@needs_moment
@pytest.mark.parametrize("item", SERIES, ids=["whole", "longer", "short", "a-patch", "gaps", "open-end"])
def test_vectors_are_the_packages(item: Array, published: tuple[TimeSeriesRuntime, Any], tmp_path: Path) -> None:
    """The mean over patches that lack no value, and over channels."""
    runtime, package = published
    vfm = serve(runtime, tmp_path / "own")
    with torch.no_grad():
        want = package.embed(**given(item)).embeddings[0]
    found = finished(runtime, ask(runtime, vfm, item))["EMBEDDING"][0]
    np.testing.assert_allclose(found, want.numpy(), atol=1e-5)
    assert np.ptp(found) > 1


@needs_moment
def test_its_passes_are_recorded_and_it_holds_no_words(published: tuple[TimeSeriesRuntime, Any]) -> None:
    runtime, _ = published
    assert runtime.forward.recorded is not None
    assert runtime.forward.recorded.runs(False, CONTEXT // PATCH, adapted=False)
    assert runtime.forward.recorded.adaptable
    assert {name.partition(".")[0] for name in runtime.model.state_dict()} == {"patch_embedding", "encoder"}
    assert not any(name.startswith("encoder.embed_tokens") for name in runtime.model.state_dict())


@needs_moment
def test_its_reconstruction_head_fills_gaps_as_the_package_does(model: Path) -> None:
    package = moment_of(model)
    importer = Importer(Backbone(model, family="time-series", dtype="float32"), tolerance=1e-5)
    found = importer.found(Checkpoint(model), "fill")
    assert found.task is not None, found.reason
    assert isinstance(found.task.decoder, Imputer)
    for item in SERIES[1:]:
        steps, sent = min(len(item), CONTEXT), given(item)
        (filled,) = found.task.outputs(item / 50)
        with torch.no_grad():
            want = package(**given(item / 50), mask=sent["input_mask"]).reconstruction[0].numpy().T[-steps:]
        missing = np.isnan(item[-steps:])
        np.testing.assert_allclose(filled["IMPUTED"][missing], want[missing], atol=1e-5)
        np.testing.assert_array_equal(filled["IMPUTED"][~missing], (item / 50)[-steps:][~missing])


def fine_tuned(model: Path, directory: Path, **model_kwargs: Any) -> Any:
    """A fine-tuning of the head alone, saved as its package saves it."""
    torch.manual_seed(1)
    whole = moment_of(model, **model_kwargs)
    torch.nn.init.normal_(whole.head.linear.weight, std=0.01)
    whole.save_pretrained(directory)
    return whole


@needs_moment
def test_a_fine_tuned_forecast_head_is_a_task_on_the_same_backbone(
    model: Path, runtime: TimeSeriesRuntime, tmp_path: Path
) -> None:
    """The package cannot load what it saved of one: the config.json still asks for the head of the pretraining."""
    whole = fine_tuned(model, tmp_path / "tuned", task_name="forecasting", forecast_horizon=96)
    importer = Importer(Backbone(model, family="time-series", dtype="float32"), tolerance=1e-5)
    found = importer.found(Checkpoint(tmp_path / "tuned"), "tuned")
    assert found.task is not None, found.reason
    assert found.task.decoder == Forecaster(96)
    assert found.extension.described() == "none"
    item = series(5, 600, 3) / 50
    (forecast,) = found.task.outputs(item)
    with torch.no_grad():
        want = whole(**given(item)).forecast[0].numpy().T
    assert want.shape == (96, 3)
    np.testing.assert_allclose(forecast["FORECAST"], want, atol=1e-5)
    served = series_runtime(tmp_path / "tuned")  # it is a backbone as well
    np.testing.assert_array_equal(
        *(finished(each, ask(each, serve(each, tmp_path / "vector"), item))["EMBEDDING"] for each in (served, runtime))
    )


@needs_moment
def test_a_fine_tuned_encoder_is_lora_where_it_differs_by_a_low_rank(model: Path, tmp_path: Path) -> None:
    whole = moment_of(model, task_name="forecasting", forecast_horizon=24)
    with torch.no_grad():
        for block in whole.encoder.block:
            block.layer[0].SelfAttention.q.weight += 0.05 * torch.randn(32, 2) @ torch.randn(2, 32)
    whole.save_pretrained(tmp_path / "tuned")
    importer = Importer(Backbone(model, family="time-series", dtype="float32"), tolerance=1e-5)
    found = importer.found(Checkpoint(tmp_path / "tuned"), "tuned")
    assert found.task is not None, found.reason
    assert found.extension.described() == "LoRA of rank 2 on 2 layers"
    item = series(6, 600) / 50
    (forecast,) = found.task.outputs(item)
    with torch.no_grad():
        want = whole(**given(item)).forecast[0].numpy().T
    np.testing.assert_allclose(forecast["FORECAST"], want, atol=1e-5)


@needs_moment
def test_loading_prints_nothing_where_programs_read(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series_runtime(model)
    assert not capsys.readouterr().out


@needs_moment
def test_a_classification_head_reads_what_no_decoder_does(model: Path, tmp_path: Path) -> None:
    fine_tuned(model, tmp_path / "tuned", task_name="classification", n_channels=1, num_class=3)
    importer = Importer(Backbone(model, family="time-series", dtype="float32"), tolerance=1e-5)
    found = importer.found(Checkpoint(tmp_path / "tuned"), "tuned")
    assert found.task is None
    assert "reads the mean over all patches, those of padding too" in found.reason


@needs_moment
def test_lora_changes_its_vectors_as_peft_does(model: Path, runtime: TimeSeriesRuntime, tmp_path: Path) -> None:
    from fmplex_backend.families.time_series.moment_model import MomentConfig

    package, base, tuned = (moment_of(model) for _ in range(3))
    base.config = tuned.config = MomentConfig(d_model=32)  # PEFT does not read the package's own
    config = LoraConfig(r=4, target_modules=["q", "v"])
    save_adapter(tmp_path / "tuned" / "adapter", base, config, seed=1, scale=0.8)
    vfm = serve(runtime, tmp_path / "tuned", adapter={"kind": "peft"})
    item = series(4, 300)
    found = finished(runtime, ask(runtime, vfm, item))["EMBEDDING"][0]
    with torch.no_grad():
        plain = package.embed(**given(item)).embeddings[0].numpy()
        PeftModel.from_pretrained(tuned, str(tmp_path / "tuned" / "adapter")).eval()
        want = tuned.embed(**given(item)).embeddings[0].numpy()
    np.testing.assert_allclose(found, want, atol=1e-4)
    assert np.abs(want - plain).max() > 0.01


@needs_moment
def test_a_series_without_a_whole_patch_is_refused(runtime: TimeSeriesRuntime, tmp_path: Path) -> None:
    vfm = serve(runtime, tmp_path / "own")
    sparse = series(1, 64, 2)
    sparse[::PATCH, 1] = np.nan
    for item, which in ((series(1, PATCH - 1), "it has"), (sparse, "channel 1 has")):
        with pytest.raises(InvalidRequest, match=rf"SERIES\[0\]: {which} no 8 values in a row where the backbone cuts"):
            ask(runtime, vfm, item)


@needs_moment
def test_it_has_no_class_token_and_no_forecast_head_of_its_own(runtime: TimeSeriesRuntime, tmp_path: Path) -> None:
    with pytest.raises(TaskRefused, match="no class token"):
        serve(runtime, tmp_path / "cls", decoder={"kind": "embedding", "pooling": "cls"})
    with pytest.raises(TaskRefused, match=r"decoder\.kind: .* Fit a Forecaster, or import a fine-tuned checkpoint"):
        serve(runtime, tmp_path / "own", decoder={"kind": "own-forecast"})


@needs_moment
def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    directory = save_moment(tmp_path / "model", tiny=True)
    tensors = load_file(directory / "model.safetensors")
    del tensors["encoder.block.1.layer.0.SelfAttention.v.weight"]
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(BackboneRefused, match=r"lack encoder\.block\.1\.layer\.0\.SelfAttention\.v\.weight"):
        series_runtime(directory)


def test_it_is_known_by_its_fields_and_its_width_is_its_t5s() -> None:
    assert family_of("model", MOMENT) == "time-series"
    assert width_of(MOMENT) == WIDTH
    assert width_of({**MOMENT, "d_model": 64}) == 64
    with pytest.raises(Exception, match="is a model of no family here"):
        family_of("model", {**MOMENT, "t5_config": None})


@needs_moment
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"transformer_type": "encoder_decoder"}, "has transformer_type: it is encoder_decoder"),
        ({"patch_stride_len": 4}, "has patch_stride_len: its masks are of patches that do not overlap"),
        ({"revin_affine": True}, "has revin_affine: heads here take level and scale alone"),
    ],
)
def test_what_is_not_read_right_is_refused_by_its_field(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MOMENT | changed))
    with pytest.raises(BackboneRefused, match=message):
        load_backbone(TimeSeriesConfig(model=str(tmp_path)), tmp_path / "config.pbtxt", torch.device("cpu"))


def test_without_the_package_its_installation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MOMENT))
    monkeypatch.setitem(sys.modules, "momentfm", None)
    monkeypatch.delitem(sys.modules, "fmplex_backend.families.time_series.moment_model", raising=False)
    with pytest.raises(BackboneRefused, match=r"\(moment\) needs a package.*pip install --no-deps momentfm==0\.1\.4"):
        load_backbone(TimeSeriesConfig(model=str(tmp_path)), tmp_path / "config.pbtxt", torch.device("cpu"))
