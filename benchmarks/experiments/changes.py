"""Tasks that are added, changed and removed on a running server: how long it takes, and how other tasks fare.

* add: from moving a LoRA task's directory into the repository to its first answer. On an idle server, and under load.
* weight: from replacing config.pbtxt to the engine's use of the new weight. Measured inside the process (the same
  loader and engine, no server), because /metrics shows a weight only once a second.
* load: a task is added, re-weighted, given a new version and removed over and over while other tasks are called.
"""

from __future__ import annotations

import itertools
import re
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.harness.repositories import texts_of_length, write_adapters, write_backbone, write_task
from benchmarks.harness.serving import serving
from benchmarks.harness.subject import subject
from benchmarks.load import Outcome, Plan, closed, run_load
from fmplex_backend.families.text_encoder.parameters import TextEncoderConfig
from fmplex_backend.families.text_encoder.runtime import TextEncoderRuntime
from fmplex_backend.serving.service import Service
from fmplex_backend.types import Vfm
from testing.clients import GrpcClient
from testing.servers import Serving

REQUESTS = 5_000


WEIGHT = re.compile(r'(key: "weight" value \{ string_value: ")[^"]*')


def set_weight(config: Path, weight: float) -> None:
    """Write aside and rename over, as everything that edits a repository should."""
    text, found = WEIGHT.subn(rf"\g<1>{weight:g}", config.read_text(encoding="utf-8"))
    assert found == 1
    aside = config.with_name(f".{config.name}.new")
    aside.write_text(text, encoding="utf-8")
    aside.rename(config)


class Changer:
    """Adds and removes one task of a repository that a server runs on."""

    def __init__(self, server: Serving, client: GrpcClient, ready: Path) -> None:
        self.server, self.client, self.ready = server, client, ready
        self.repository = server.repository
        self.config = self.repository / "late" / "config.pbtxt"

    def add(self) -> float:
        """Move the task in and load it; returns the seconds until its first answer."""
        aside = self.repository.parent / "aside"
        shutil.copytree(self.ready, aside)
        start = time.perf_counter()
        aside.rename(self.repository / "late")
        self.client.load("late")
        self.client.ask_one("late", "is it there yet").good()
        return time.perf_counter() - start

    def change_weight(self) -> None:
        """Write the entry with another weight, and load it."""
        set_weight(self.config, 5)
        self.client.load("late")

    def new_version(self, adapter: Path) -> None:
        """Add version 2, with another adapter."""
        aside = self.repository.parent / "version"
        shutil.copytree(self.ready / "1", aside)
        for file in adapter.iterdir():
            shutil.copy(file, aside / "adapter" / file.name)
        aside.rename(self.repository / "late" / "2")
        self.client.load("late")
        self.client.ask_one("late", "is it there yet").good()

    def remove(self) -> None:
        """Unload the task, then delete it."""
        self.client.unload("late")
        shutil.rmtree(self.repository / "late")

    def cycle(self, adapter: Path) -> float:
        """Add, change and remove the task; returns the seconds that adding took."""
        took = self.add()
        self.change_weight()
        self.new_version(adapter)
        self.remove()
        return took


def _under_load(changer: Changer, adapter: Path, plan: Plan) -> tuple[Outcome, list[float]]:
    """Run the load in a thread, and change the task until it ends; returns the seconds of each adding."""
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(run_load(plan)))
    thread.start()
    took = []
    time.sleep(plan.warmup)
    while thread.is_alive():
        took.append(changer.cycle(adapter))
        time.sleep(0.2)
    return outcomes[0], took


def on_server(*, quick: bool) -> dict[str, Any]:
    """Adding on an idle server and under load, and the load's failures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        repository = root / "repository"
        write_backbone(repository)
        adapters = write_adapters(root, 3)
        for number in range(4):
            write_task(repository, f"task{number}", number, adapter=adapters[0] if number % 2 else None)
        write_task(root / "ready", "late", 9, adapter=adapters[1])
        with serving(repository) as server, server.client() as client:
            before = server.stub().pid
            changer = Changer(server, client, root / "ready" / "late")
            idle = [changer.cycle(adapters[2]) for _ in range(5 if quick else 25)]
            names = [f"task{number}" for number in range(4)]
            requests, seconds, taken = 0, 15.0, []
            failures = 0
            while requests < (2_000 if quick else REQUESTS):
                plan = closed(server.grpc_url, names, texts_of_length(8, 512), clients=32, seconds=seconds)
                outcome, took = _under_load(changer, adapters[2], plan)
                requests += outcome.answered
                failures += outcome.failures
                taken += took
            same_process = server.stub().pid == before
    return {
        "idle_add_ms": statistics.median(idle) * 1e3,
        "idle_add_max_ms": max(idle) * 1e3,
        "idle_adds": len(idle),
        "busy_add_ms": statistics.median(taken) * 1e3,
        "busy_adds": len(taken),
        "requests": requests,
        "failures": failures,
        "same_process": same_process,
    }


def weight(*, quick: bool) -> dict[str, Any]:
    """Milliseconds from the rename until the engine's vFM has the new weight, idle."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        write_backbone(repository)
        for number in range(20):
            write_task(repository, f"task{number}", number)
        config = TextEncoderConfig.model_validate({"model": subject().model, "dtype": subject().dtype, "threads": 1})

        def runtime(cost: Any) -> Any:
            file = repository / "minilm" / "config.pbtxt"
            return TextEncoderRuntime(config, file, "cpu", 32, cost.predict)

        service = Service(repository, "minilm", config, 32, runtime)
        service.start()
        time.sleep(0.5)
        took = []
        for wanted in itertools.islice(itertools.cycle([2.0, 3.0]), 10 if quick else 50):
            vfm = service.loader.table[7]
            assert isinstance(vfm, Vfm)
            start = time.perf_counter()
            set_weight(repository / "task7" / "config.pbtxt", wanted)
            while vfm.weight != wanted and time.perf_counter() - start < 10:
                time.sleep(0.0005)
            took.append((time.perf_counter() - start) * 1e3)
            time.sleep(0.05)
        service.stop()
    return {"weight_ms": statistics.median(took), "weight_max_ms": max(took), "weight_changes": len(took)}


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """One row: both parts."""
    return [on_server(quick=quick) | weight(quick=quick)]


def show(rows: list[dict[str, Any]]) -> None:
    """Three lines."""
    for row in rows:
        print(
            f"adding a LoRA task until its first answer: {row['idle_add_ms']:.0f} ms on an idle server (target 100; at "
            f"most {row['idle_add_max_ms']:.0f} of {row['idle_adds']}), {row['busy_add_ms']:.0f} ms under load "
            f"(median of {row['busy_adds']}; the queue included)"
        )
        print(
            f"a weight is in effect after {row['weight_ms']:.1f} ms (target 20; at most {row['weight_max_ms']:.1f} of "
            f"{row['weight_changes']})"
        )
        print(
            f"{row['failures']} of {row['requests']} requests of other tasks failed meanwhile; the backbone's process "
            f"{'stayed' if row['same_process'] else 'CHANGED'}"
        )


if __name__ == "__main__":
    show(run())
