"""Tasks fitted on the states of models that extras bring, with random weights: as they are fitted, so they serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from optional_series import needs_chronos, needs_moment
from series_fixtures import ask, finished

from fmplex import AnomalyDetector, Backbone, Classifier, Forecaster, Imputer, LoRA, Regressor, Task
from fmplex_backend.types import Vfm
from testing.optional_series import save_chronos_bolt, save_moment
from testing.repositories import write_backbone

Saved = Callable[[Path], Path]
CONTEXT = 64
MODELS: dict[str, Saved] = {
    "chronos-bolt": lambda directory: save_chronos_bolt(directory, tiny=True),
    "moment": lambda directory: save_moment(directory, tiny=True, steps=CONTEXT),
}


@pytest.fixture(
    scope="module",
    params=[pytest.param("chronos-bolt", marks=needs_chronos), pytest.param("moment", marks=needs_moment)],
)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("series")
    root, model = folder / "repository", MODELS[request.param](folder / "model")
    root.mkdir()
    write_backbone(root, "series", model=str(model), family="time-series", max_batch_size=16, threads="1")
    return Backbone("series", repository=root, device="cpu")


def wave(steps: int, start: int = 0) -> npt.NDArray[np.float32]:
    time = np.arange(start, start + steps)
    return np.stack([np.sin(time / 5) * 3 + 10, np.cos(time / 7) * 50], axis=1).astype(np.float32)


def served(task: Task, item: npt.NDArray[np.float32]) -> dict[str, Any]:
    """What the runtime answers with the task's directory, as a server reads it."""
    runtime: Any = task.backbone.runtime
    vfm = Vfm(0, task.name)
    vfm.extensions = runtime.load(task.save())
    runtime.attach(vfm.extensions)
    return finished(runtime, ask(runtime, vfm, item))


def check(task: Task, item: npt.NDArray[np.float32]) -> dict[str, Any]:
    """The answers of a fitted task, which are the same out of its directory and served."""
    (before,) = task.outputs(item)
    found = served(task, item)
    (after,) = Task.load(task.save().parent, task.backbone).outputs(item)
    for name, each in before.items():
        np.testing.assert_array_equal(after[name], each)
        if each.dtype.kind == "f":
            np.testing.assert_allclose(found[name][0], each, rtol=1e-5, atol=1e-5)
    return before


def test_a_forecaster_on_its_states(backbone: Backbone) -> None:
    task = Task("next", backbone, decoder=Forecaster(20, context=CONTEXT))
    task.fit(wave(700), validation=0.2, test=wave(300, 700))
    assert task.metrics["mae"] < 0.5 * task.metrics["naive_mae"]  # type: ignore[operator]
    assert check(task, wave(200, 700))["FORECAST"].shape == (20, 2)


def test_a_forecaster_with_lora(backbone: Backbone) -> None:
    task = Task("tuned", backbone, decoder=Forecaster(8, context=CONTEXT), adapter=LoRA(r=2, targets=["q", "v"]))
    task.fit(wave(300), epochs=1)
    check(task, wave(200, 300))


def test_anomalies_and_gaps(backbone: Backbone) -> None:
    odd = wave(200, 700)
    odd[-3, 1] += 300
    task = Task("odd", backbone, decoder=AnomalyDetector(8, context=CONTEXT))
    task.fit(wave(700))
    assert check(task, odd)["ANOMALY"].argmax() // 2 == 5, "the third step from the end"
    broken = wave(100, 700)
    broken[70:74, 1] = np.nan
    task = Task("whole", backbone, decoder=Imputer(gap=4, context=CONTEXT))
    task.fit(wave(400))
    filled = check(task, broken)["IMPUTED"]
    assert np.isfinite(filled).all()
    np.testing.assert_array_equal(filled[:, 0], broken[-CONTEXT:, 0])


def test_gaps_in_every_patch_leave_something_to_see(backbone: Backbone) -> None:
    """A model that reads whole patches alone would see nothing of these windows."""
    task = Task("whole", backbone, decoder=Imputer(gap=1, missing=0.4, context=CONTEXT))
    task.fit([wave(60, start) for start in range(0, 1200, 60)], epochs=1)
    check(task, wave(60))


def test_labels_and_numbers(backbone: Backbone) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.normal(0, 1, 64).cumsum() * grows + np.sin(np.arange(64)) for grows in (0, 3) for _ in range(40)]
    task = Task("kind", backbone, decoder=Classifier())
    task.fit(rows, ["calm"] * 40 + ["wild"] * 40, validation=None)
    assert task.evaluate(rows, ["calm"] * 40 + ["wild"] * 40).figures["accuracy"] > 0.9
    check(task, np.asarray(rows[0], np.float32)[:, None])
    number = Task("number", backbone, decoder=Regressor())
    number.fit(rows, [float(np.ptp(row)) for row in rows], validation=None)
    check(number, np.asarray(rows[0], np.float32)[:, None])
