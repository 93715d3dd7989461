"""Fit the demo's tasks on series, all on one frozen PatchTST (pretrain_series.py), and save them into a repository.

    python clients/examples/train_series_demo.py --data DIR    DIR/servegen has ServeGen's files, see series_data.py

`rate-forecast` and `rate-anomaly` are fitted to the first ten days of each client's request rates and measured on the
last four; `load-kind` is fitted to generated curves and measured on others. A task that is there is replaced.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from pretrain_series import CONTEXT
from series_data import HELD_OUT, Array, load_curves, request_rates

from fmplex import AnomalyDetector, Backbone, Classifier, Forecaster, Task, TaskProblem
from fmplex_backend.repository.writer import ModelRepository

HORIZON, COMPARED = 24, 6  # four hours, and one
SPIKES = 200  # series that get one


def forecaster(backbone: Backbone, rates: list[Array]) -> Task:
    """The next four hours of a client's request rate."""
    task = Task(
        "rate-forecast",
        backbone,
        decoder=Forecaster(HORIZON, context=CONTEXT),
        description="Requests a second of the next 24 windows of 10 minutes, of clients of a language model (ServeGen)",
    )
    task.fit(
        [own[:-HELD_OUT] for own in rates],
        validation=0.1,
        test=[own[-HELD_OUT - CONTEXT :] for own in rates],
        progress=True,
    )
    task.metrics = {"test_set": f"the last 4 of 14 days of {len(rates)} clients"} | task.metrics
    return task


def detector(backbone: Backbone, rates: list[Array], seed: int) -> Task:
    """Whether the last hour of a client is as it was to be expected; measured with spikes put into half of the rows."""
    task = Task(
        "rate-anomaly",
        backbone,
        decoder=AnomalyDetector(COMPARED, context=CONTEXT),
        description="Which of the last 6 windows of 10 minutes have another request rate than was to be expected",
    )
    task.fit([own[:-HELD_OUT] for own in rates], progress=True)
    series, marks = spiked(np.random.default_rng(seed), rates)
    task.evaluate(series, marks)
    task.metrics = {
        "test_set": f"the last 4 of 14 days of {len(rates)} clients; a window of half of the rows is tripled"
    } | task.metrics
    return task


def spiked(rng: np.random.Generator, rates: list[Array]) -> tuple[list[Array], list[list[int]]]:
    """Series of the days held out, and for each step whether it was tripled."""
    series, marks = [], []
    for place in range(SPIKES):
        own = rates[rng.integers(len(rates))]
        end = len(own) - int(rng.integers(HELD_OUT - COMPARED))
        part, mark = own[end - CONTEXT : end].copy(), [0] * CONTEXT
        if place % 2:
            step = CONTEXT - 1 - int(rng.integers(COMPARED))
            part[step] *= 3
            mark[step] = 1
        series.append(part)
        marks.append(mark)
    return series, marks


def classifier(backbone: Backbone) -> Task:
    """Which kind of load a curve shows."""
    task = Task(
        "load-kind",
        backbone,
        decoder=Classifier(),
        description="Whether two days of a server's load show a daily rhythm, bursts, growth or neither (generated)",
    )
    task.fit(*load_curves(1200, seed=1), validation=0.1, test=load_curves(400, seed=2), progress=True)
    task.metrics = {"test_set": "400 generated curves, of another seed"} | task.metrics
    return task


def main(
    data: Annotated[Path, typer.Option(help="Directory with the folder servegen.")],
    repository: Annotated[Path, typer.Option(help="Model repository to save into.")] = Path("model_repository"),
    threads: Annotated[int, typer.Option(min=1, help="Cores to use.")] = 2,
    seed: Annotated[int, typer.Option(help="Random seed of the spikes.")] = 0,
) -> None:
    """Fit, measure and save."""
    torch.set_num_threads(threads)
    backbone, models, rates = (
        Backbone("patchtst", repository=repository),
        ModelRepository(repository),
        request_rates(data),
    )
    for task in (forecaster(backbone, rates), detector(backbone, rates, seed), classifier(backbone)):
        if task.name in models.tasks():
            models.remove(task.name)
        task.save(repository)
        print(f"{task.name}: {task.metrics}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except TaskProblem as error:
        raise SystemExit(str(error)) from None
