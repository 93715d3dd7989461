"""Tasks on time series: forecasts, anomalies and gaps, learned from series without labels."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from series_fixtures import CONTEXT, save_series_model

from fmplex import (
    Anomalies,
    AnomalyDetector,
    Backbone,
    Classifier,
    Embedder,
    Filled,
    Forecast,
    Forecaster,
    Imputer,
    LoRA,
    OwnForecaster,
    Regressor,
    Task,
    TaskProblem,
    Window,
)
from fmplex_backend.families.time_series.series import TimeSeries
from fmplex_backend.families.time_series.windows import MOST_CHANNELS, later_part, windows_of
from testing.repositories import write_backbone


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A tiny PatchTST with its head."""
    folder = tmp_path_factory.mktemp("series")
    root = folder / "repository"
    root.mkdir()
    model = save_series_model(folder / "model")
    write_backbone(root, "tst", model=str(model), family="time-series", max_batch_size=16, threads="1")
    return Backbone("tst", repository=root, device="cpu")


def two_waves(steps: int, start: int = 0) -> npt.NDArray[np.float32]:
    """Of very different units; a tenth of the first is missing."""
    time = np.arange(start, start + steps)
    values = np.stack([np.sin(time / 5) * 3 + 10, np.cos(time / 7) * 1e4], axis=1).astype(np.float32)
    values[::10, 0] = np.nan
    return values


def saved(task: Task) -> Task:
    """Out of its directory."""
    return Task.load(task.save().parent, task.backbone)


def test_any_horizon_is_forecast_by_a_head_of_its_own(backbone: Backbone) -> None:
    task = Task("next", backbone, decoder=Forecaster(90, context=CONTEXT))
    task.fit(two_waves(700), validation=0.2, test=two_waves(300, 700))
    (found,) = task.predict(two_waves(200, 700))
    assert isinstance(found, Forecast)
    want = two_waves(90, 900)
    assert found.forecast.shape == (90, 2)
    assert np.nanmax(np.abs(found.forecast - want) / [3, 1e4]) < 0.3
    assert task.metrics["mae"] < 0.2 * task.metrics["naive_mae"]  # type: ignore[operator]
    np.testing.assert_array_equal(saved(task).predict(two_waves(200, 700))[0].forecast, found.forecast)  # type: ignore[attr-defined]
    assert found.shown().startswith("90 steps: ")


def test_the_last_windows_are_held_out_and_none_reaches_into_them() -> None:
    rows = windows_of([TimeSeries(two_waves(400)), TimeSeries(two_waves(150))], "the data", 12, 64)
    chosen = later_part(rows.labels, 0.25, 12)
    assert chosen is not None
    training, held = ([rows.labels[place].start for place in part] for part in chosen)
    assert max(training) + 12 <= min(held)
    assert len(held) == pytest.approx(0.25 * len(rows), rel=0.2)


def test_windows_are_bounded_and_never_of_unknown_ends() -> None:
    wide = np.ones((5000, 8), dtype=np.float32)
    wide[2000:3000] = np.nan
    rows = windows_of([TimeSeries(wide)], "the data", 10, 64)
    assert len(rows) * 8 <= MOST_CHANNELS
    assert not any(np.isnan(label.values).all() for label in rows.labels)
    with pytest.raises(TaskProblem, match="the longest series has 8 steps"):
        windows_of([TimeSeries(wide[:8])], "the data", 10, 64)


def test_windows_of_many_steps_take_little_memory() -> None:
    long, short = TimeSeries(np.ones((300_000, 1), dtype=np.float32)), TimeSeries(two_waves(150)[:, 1:])
    tracemalloc.start()
    rows = windows_of([short, long, short], "the data", 10, 64)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 12e6, "each step as a tuple takes three times as much"
    every = [*range(64, 141), *range(64, 299_991), *range(64, 141)]
    assert [label.start for label in rows.labels] == every[:: -(-len(every) // MOST_CHANNELS)]


def test_anomalies_are_judged_by_errors_on_what_was_held_out(backbone: Backbone) -> None:
    task = Task("odd", backbone, decoder=AnomalyDetector(8, context=CONTEXT), adapter=LoRA(r=2))
    task.fit(two_waves(700), epochs=1, test=two_waves(300, 700))
    assert task.metrics["alarms"] < 0.1  # type: ignore[operator]
    usual, odd = two_waves(204, 700), two_waves(204, 700)
    odd[-3, 1] += 1.5e4
    task = saved(task)
    (calm,), (found,) = task.predict(usual), task.predict(odd)
    assert isinstance(calm, Anomalies)
    assert isinstance(found, Anomalies)
    assert (calm.steps, found.steps) == ([], [-3])
    assert found.anomaly.shape == (8, 2)
    assert found.anomaly[4, 0] == 0, "a missing value is no anomaly"
    marks = [[0] * 204, [0] * 201 + [1, 0, 0]]
    assert task.evaluate([usual, odd], marks).figures["f1"] == 1.0
    with pytest.raises(TaskProblem, match=r"row 0: its label is not 0 or 1 for each step"):
        task.evaluate([usual], [[1, 2, 3]])
    with pytest.raises(TaskProblem, match="validation"):
        Task("odd", backbone, decoder=AnomalyDetector(8)).fit(two_waves(12))


def test_gaps_are_filled_and_all_else_stays(backbone: Backbone) -> None:
    task = Task("whole", backbone, decoder=Imputer(gap=4, context=CONTEXT))
    task.fit(two_waves(700), validation=0.2, test=two_waves(300, 700))
    assert {"mae", "line_mae"} <= task.metrics.keys()
    sent = two_waves(50, 700)
    sent[20:24, 1] = np.nan
    (found,) = saved(task).predict(sent)
    assert isinstance(found, Filled)
    assert found.imputed.shape == (50, 2)
    known = ~np.isnan(sent)
    np.testing.assert_array_equal(found.imputed[known], sent[known])
    assert np.abs(found.imputed[20:24, 1] - two_waves(50, 700)[20:24, 1]).max() < 1.5e4
    (cut,) = task.predict(two_waves(300, 700))
    assert isinstance(cut, Filled)
    assert len(cut.imputed) == CONTEXT


def test_series_of_several_lengths_are_filled_in_their_own(backbone: Backbone) -> None:
    """Windows of a series that is hardly longer than a context grow from one to the next."""
    task = Task("whole", backbone, decoder=Imputer(gap=4, context=CONTEXT))
    task.fit(two_waves(700), epochs=1, test=two_waves(CONTEXT * 3 // 2, 700))
    assert task.metrics["mae"] > 0  # type: ignore[operator]
    found: list[Any] = task.predict([two_waves(20, 700), two_waves(50, 700)])
    assert [each.imputed.shape for each in found] == [(20, 2), (50, 2)]
    np.testing.assert_array_equal(found[0].imputed[1:, 1], two_waves(20, 700)[1:, 1])


def test_heads_on_the_pooled_vector(backbone: Backbone) -> None:
    time = np.arange(90)
    waves = [np.sin(time / (2 + place % 2 * 6)) + 0.01 * place for place in range(24)]
    task = Task("kind", backbone, decoder=Classifier(pooling="max"), adapter=LoRA(r=2, targets=["ff.0", "q_proj"]))
    task.fit(waves, ["fast", "slow"] * 12, epochs=1)
    assert [each.label for each in saved(task).predict(waves[:2])] == ["fast", "slow"]  # type: ignore[attr-defined]
    number = Task("period", backbone, decoder=Regressor())
    number.fit(waves, [2.0, 8.0] * 12)
    assert number.predict(waves[1])[0].value == pytest.approx(8, abs=0.5)  # type: ignore[attr-defined]


def test_the_models_own_head_is_not_fitted(backbone: Backbone, tmp_path: Path) -> None:
    task = Task("own", backbone, decoder=OwnForecaster(horizon=30))
    assert task.evaluate(two_waves(200)).figures["mae"] > 0
    with pytest.raises(TaskProblem, match="has no weights to fit"):
        task.fit(two_waves(200))
    other = save_series_model(tmp_path / "other", seed=3)
    brought = Task("other", backbone, decoder=OwnForecaster(horizon=30, head="task", checkpoint=other))
    one, two = (each.predict(two_waves(100))[0].forecast for each in (task, brought))  # type: ignore[attr-defined]
    assert np.abs(one - two).max() > 0.01
    np.testing.assert_array_equal(saved(brought).predict(two_waves(100))[0].forecast, two)  # type: ignore[attr-defined]


def test_an_entry_tells_how_many_channels(backbone: Backbone) -> None:
    task = Task("two", backbone, decoder=Embedder(), encoder=Window(channels=2))
    assert "dims: 2" in (task.save().parent / "config.pbtxt").read_text()
    with pytest.raises(Exception, match="SERIES has 3 channels, the task reads 2"):
        task.predict(np.ones((20, 3)))


def test_what_cannot_be_learned_is_named(backbone: Backbone) -> None:
    cases: list[tuple[Any, Any]] = [
        (([np.ones((60, 1)), np.ones((60, 2))],), "have 1 to 2 channels"),
        ((["a text"],), "there is no file a text"),
    ]
    for given, says in cases:
        with pytest.raises(TaskProblem, match=says):
            Task("bad", backbone, decoder=Forecaster(4)).fit(*given)
    with pytest.raises(TaskProblem, match=r"row 0: its label is no 4 steps of 1 channels"):
        Task("bad", backbone, decoder=Forecaster(4)).fit([np.arange(60.0)], [[1.0, 2.0]])
