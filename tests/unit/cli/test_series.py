"""`fmplex task train` and `fmplex predict` on time series, the server is the test's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from series_fixtures import save_series_model
from typer.testing import CliRunner

from fmplex import Anomalies, Forecast, Label
from fmplex.cli import app as cli
from fmplex.client import sync
from fmplex.client.wire import Interface
from fmplex_backend.repository.config import load_task_config
from fmplex_backend.repository.writer import ModelRepository
from testing.repositories import write_backbone

runner = CliRunner()
NEXT = Interface("next", "forecast", (), ("FORECAST",), 4, "SERIES")


class FakeClient:
    """Forecasts six steps of each channel, all 1; or finds the last of three anomalous; or labels."""

    asked: list[Any]

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def interface(self, task: str) -> Interface:
        return NEXT

    def predict(self, task: str, items: Sequence[Any], timeout: float | None = None) -> list[Any]:
        FakeClient.asked = list(items)
        kinds: dict[str, Any] = {
            "next": lambda item: Forecast(np.ones((6, item.channels), dtype=np.float32)),
            "odd": lambda item: Anomalies(np.array([[0.1], [0.5], [2.5]], dtype=np.float32)),
            "kind": lambda item: Label("a", {"a": 1.0}),
        }
        return [kinds[task](item) for item in items]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "Client", FakeClient)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two channels, and a date."""
    file, time = tmp_path / "power.csv", np.arange(300)
    lines = [f"day {step},{np.sin(step / 5):.4f},{step % 7}" for step in time]
    file.write_text("\n".join(["date,power,heat", *lines, ""]))
    return file


def test_a_forecast_is_trained_from_a_table(table: Path, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    root.mkdir()
    model = save_series_model(tmp_path / "model")
    write_backbone(root, "tst", model=str(model), family="time-series", max_batch_size=16, threads="1")
    line = ["task", "train", "power", "--backbone", "tst", "-r", str(root), "--data", str(table), "--adapter", "none"]
    done = runner.invoke(cli.app, [*line, "--decoder", "forecast", "--horizon", "48", "--validation", "0.2"])
    assert done.exit_code == 0, done.output
    assert "fmplex predict power" in done.output
    assert load_task_config(ModelRepository(root).task("power")[1].version.path / "task.json").decoder.horizon == 48
    done = runner.invoke(cli.app, [*line, "--new-version", "--decoder", "classification", "--horizon", "48"])
    assert "a classification decoder has no --horizon" in done.output


@pytest.mark.usefixtures("served")
def test_a_plot_shows_what_was_held_back(table: Path, tmp_path: Path) -> None:
    picture = tmp_path / "next.svg"
    done = runner.invoke(cli.app, ["predict", "next", str(table), "--hold-back", "6", "--plot", str(picture)])
    assert done.exit_code == 0, done.output
    assert done.output == "6 steps: 1 1 1 1 ...; 1 1 1 1 ...\n"
    assert FakeClient.asked[0].steps == 294
    drawn = picture.read_text()
    assert all(words in drawn for words in ("<!-- power -->", "<!-- power, forecast -->", "<!-- heat, forecast -->"))
    done = runner.invoke(cli.app, ["predict", "odd", "1,2,3,4,90", "--plot", str(tmp_path / "odd.png")])
    assert done.output == "anomalous of the last 3 steps: -1 (highest score 2.5)\n"
    assert (tmp_path / "odd.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("task", "options", "says"),
    [
        ("kind", ["--plot", "a.svg"], "a result of this kind (Label) has no picture. Leave --plot out"),
        ("next", ["--plot", "a.txt"], "pictures are .pdf, .png, .svg files. Name one of these"),
        ("next", ["--plot", "none/a.svg"], "cannot be written: No such file or directory"),
        ("next", ["--hold-back", "3"], "3 steps cannot be held back of a series of 3. Give fewer"),
    ],
)
def test_what_cannot_be_drawn(
    task: str, options: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = runner.invoke(cli.app, ["predict", task, "1,2,3", *options])
    assert (done.exit_code, says in done.output) == (1, True), done.output
