"""Models of packages that extras name, on the server: it answers as their runtime does in a process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optional_series import needs_chronos, needs_moment
from series_fixtures import ask, finished, series, series_runtime

from fmplex import Client
from fmplex_backend.types import Vfm
from testing.optional_series import save_chronos_bolt, save_moment
from testing.repositories import Task, write_backbone, write_task
from testing.servers import serving

SERIES = ("SERIES", "TYPE_FP32", (-1, -1))
TASKS = {"vectors": "embedding", "numbers": "regression"}
READ = {"vectors": ("EMBEDDING", "vector"), "numbers": ("SCORES", "values")}  # the output, and the client's name for it


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(lambda folder: save_chronos_bolt(folder, tiny=True), id="chronos-bolt", marks=needs_chronos),
        pytest.param(
            lambda folder: save_moment(folder, tiny=True, steps=64), id="moment", marks=[needs_moment, pytest.mark.slow]
        ),
    ],
)
def test_the_server_answers_as_the_runtime_does(save: Callable[[Path], Path], tmp_path: Path) -> None:
    model, repository = save(tmp_path / "model"), tmp_path / "repository"
    runtime = series_runtime(model)
    write_backbone(repository, "base", model=str(model), family="time-series", dtype="float32", threads="1")
    kind: dict[str, Any] = {"backbone": "base", "family": "time-series", "reads": SERIES, "truncates": False}
    for number, (name, decoder) in enumerate(TASKS.items()):
        write_task(repository, Task(name, number, decoder, hidden=runtime.hidden, labels=2, **kind))
    items = [series(seed, 20 + 30 * seed, 2) / 50 for seed in range(3)]
    with serving(repository, tmp_path) as server, Client(server.grpc_url) as client:
        for name, (output, attribute) in READ.items():
            vfm = Vfm(0, name)
            vfm.extensions = runtime.load(repository / name / "1")
            runtime.attach(vfm.extensions)
            for item in items:
                wanted = finished(runtime, ask(runtime, vfm, item))[output][0]
                (found,) = client.predict(name, [item])
                np.testing.assert_allclose(getattr(found, attribute), wanted, atol=1e-5)
