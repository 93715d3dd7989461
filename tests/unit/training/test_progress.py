"""What is counted and told while a task is fitted."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from task_fixtures import labelled, spam

from fmplex import Backbone, LoRA
from fmplex.training.progress import Progress, Status, shown


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_part_pace_and_figures() -> None:
    clock, told = Clock(), list[Status]()
    progress = Progress("spam", told.append, clock)
    progress.phase("loading")
    clock.now = 5.0
    progress.expect(100)
    progress.phase("features")
    clock.now = 7.0
    progress.advance(20, loss=0.5)
    assert (told[-1].phase, told[-1].done, told[-1].seconds) == ("features", 0.2, 7.0)
    assert told[-1].left == pytest.approx(8.0)  # 20 rows took 2 s; loading is no measure
    progress.validated(0.4, ("accuracy", 0.75))
    assert told[-1].figures == "loss 0.500, validation accuracy 0.750"
    progress.skip(60)
    assert told[-1].done == 0.5
    assert told[0].left is None


@pytest.mark.parametrize("validation", [None, 0.25])
def test_a_fitting_ends_with_all_its_work_done(backbone: Backbone, validation: float | None) -> None:
    told: list[Status] = []
    task = spam(backbone, adapter=LoRA(r=2))
    task.fit(*labelled(40), validation=validation, test=labelled(20, seed=1), epochs=2, progress=told.append)
    assert told[0].phase == "reading the rows"
    phases = list(dict.fromkeys(status.phase for status in told))
    assert phases.index("loading the backbone") < phases.index("features") < phases.index("head")
    assert phases.index("head") < phases.index("epoch 1 of 2") < phases.index("epoch 2 of 2") < phases.index("test")
    assert told[-1].done == pytest.approx(1.0)
    parts = [status.done for status in told]
    assert parts == sorted(parts)
    assert (told[-1].figure is not None) == (validation is not None)


def test_early_stopping_and_plain_heads_end_whole_too(backbone: Backbone) -> None:
    for adapter, options in ((LoRA(r=4), {"epochs": 30, "learning_rate": 0.5}), (None, {})):
        told: list[Status] = []
        task = spam(backbone, adapter=adapter)
        task.fit(*labelled(60), validation=0.3, progress=told.append, **options)
        assert told[-1].done == pytest.approx(1.0)


def test_a_library_says_nothing_by_itself(backbone: Backbone, capfd: pytest.CaptureFixture[str]) -> None:
    _ = backbone.runtime
    capfd.readouterr()
    spam(backbone).fit(*labelled(20))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_on_a_terminal_and_lines_elsewhere(terminal: bool) -> None:
    out = io.StringIO()
    with shown("spam", Console(file=out, force_terminal=terminal, width=100)) as progress:
        progress.phase("epoch 1 of 3")
        progress.expect(4)
        progress.advance(1, loss=0.167)
    if terminal:
        assert "spam: epoch 1 of 3" in out.getvalue()
        assert "loss 0.167" in out.getvalue()
        assert "25%" in out.getvalue()
    else:
        assert out.getvalue() == "spam: epoch 1 of 3, 0%, 0:00 gone\n"
