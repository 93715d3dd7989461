"""Recorded passes of time-series models: equal to the model's, with adapters and without, or not used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from series_fixtures import CHANNELS, CONTEXT, MODELS, save_series_model, series, series_runtime, tiny_series_model

from fmplex_backend.adapters.peft import Adapter, load_adapter
from fmplex_backend.families.time_series.preprocessing import Context
from fmplex_backend.families.time_series.runtime import TimeSeriesRuntime
from testing.adapters import save_adapter

PYTHON = {"timesfm"}  # decides by what a series holds


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> TimeSeriesRuntime:
    return series_runtime(save_series_model(tmp_path_factory.mktemp("traced") / "model"))


def rows_of(runtime: TimeSeriesRuntime, count: int) -> list[Context]:
    """Whole, short and with gaps, in turn."""
    steps, missing = (CONTEXT, 9, CONTEXT), (0.0, 0.0, 0.3)
    channels = runtime.anatomy.channels
    items = [series(seed, steps[seed % 3], channels, missing=missing[seed % 3]) for seed in range(count)]
    return [row for item in items for row in runtime.preprocessor.rows(item)]


def both(
    runtime: TimeSeriesRuntime,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[Context],
    adapters: list[Adapter | None],
) -> tuple[Any, Any]:
    """What decoders read of a pass, through a recording and through Python."""
    have = runtime.forward.launch(rows, adapters, {"mean", "patches"}).hidden()
    with monkeypatch.context() as patch:
        patch.setattr(runtime.forward, "recorded", None)
        want = runtime.forward.launch(rows, adapters, {"mean", "patches"}).hidden()
    return have, want


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_equal_to_the_model(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = series_runtime(save_series_model(tmp_path / "model", kind))
    recording = runtime.forward.recorded
    assert recording is not None
    assert recording.runs(False, runtime.anatomy.patches, adapted=False) == (kind not in PYTHON)
    assert bool(recording.adaptable) == (kind not in CHANNELS and kind != "mixer")
    for count in (1, 2, 7):
        rows = rows_of(runtime, count)
        have, want = both(runtime, monkeypatch, rows, [None] * count)
        for place, reads in ((place, reads) for place in range(count) for reads in ("mean", "patches")):
            np.testing.assert_allclose(have.row(place, reads, None), want.row(place, reads, None), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("targets", "is_recorded"), [(["q_proj", "ff.0"], True), (["input_embedding"], False)])
def test_adapters_are_not_passed_over(
    runtime: TimeSeriesRuntime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    targets: list[str],
    is_recorded: bool,
) -> None:
    """Those on modules that a recording does not add to run through Python."""
    config = LoraConfig(r=4, target_modules=targets)
    path = save_adapter(tmp_path / "a", tiny_series_model("patchtst").model, config, seed=1, scale=0.3)
    adapter = load_adapter(path, runtime.model, torch.float32, runtime.device)
    runtime.bank.attach(adapter)
    try:
        with runtime.bank.applied([None, adapter]):
            given = runtime.forward.lora.of_pass(2, runtime.anatomy.patches)
        rows = rows_of(runtime, 3)
        have, want = both(runtime, monkeypatch, rows, [None, adapter, adapter])
        bare, _ = both(runtime, monkeypatch, rows, [None] * 3)
    finally:
        runtime.bank.detach(adapter)
    assert (given is not None) == is_recorded
    for place in range(3):
        assert np.array_equal(have.row(place, "mean", None), want.row(place, "mean", None))
        changed = np.abs(have.row(place, "mean", None) - bare.row(place, "mean", None)).max()
        assert (changed > 1e-3) == (place > 0)


def test_rows_of_more_tokens_than_are_compared_are_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmplex_backend.families.time_series.traced.LONGEST", 4)
    runtime = series_runtime(save_series_model(tmp_path / "model"))
    assert runtime.anatomy.tokens > 4
    assert runtime.forward.recorded is None
