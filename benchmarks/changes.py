"""Tasks that come, change and go on a running server: how long it takes, and what the others notice.

* add: a LoRA task's directory is moved in and loaded; until its first answer. On an idle server, and under load.
* weight: config.pbtxt is replaced; until the engine schedules by the new weight. Measured inside the process (the same
  loader and engine, no server), because nothing outside can see a weight within milliseconds.
* load: a task is added, re-weighted, given a new version and removed over and over while other tasks are called.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tritonclient.grpc as grpcclient

from benchmarks.load import Outcome, Plan, closed, run_load
from benchmarks.repositories import texts_of_length, write_adapters, write_backbone, write_task
from benchmarks.serving import backbone_process, serving
from benchmarks.subject import subject
from fmplex_backend.config import BackboneConfig
from fmplex_backend.runtime.text_encoder import TextEncoderRuntime
from fmplex_backend.service import Service
from fmplex_backend.vfm import Vfm

REQUESTS = 5_000


def _ask(client: Any, task: str) -> None:
    tensor = grpcclient.InferInput("TEXT", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([["is it there yet"]], dtype=np.object_))
    client.infer(task, [tensor], client_timeout=30)


def set_weight(config: Path, weight: float) -> None:
    """Write aside and rename over, as everything that edits a repository should."""
    lines = config.read_text(encoding="utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if '"weight"' in line)
    value = next(i for i in range(at, len(lines)) if "string_value" in lines[i])
    lines[value] = f'    string_value: "{weight:g}"'
    aside = config.with_name(f".{config.name}.new")
    aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    aside.rename(config)


class Changer:
    """Adds and removes one task of a repository that a server runs on."""

    def __init__(self, repository: Path, ready: Path, url: str) -> None:
        self.repository, self.ready = repository, ready
        self.client = grpcclient.InferenceServerClient(url)

    def add(self) -> float:
        """Seconds from the move to the first answer."""
        aside = self.repository.parent / "aside"
        shutil.copytree(self.ready, aside)
        start = time.perf_counter()
        aside.rename(self.repository / "late")
        self.client.load_model("late")
        _ask(self.client, "late")
        return time.perf_counter() - start

    def new_version(self, adapter: Path) -> None:
        """Version 2, with another adapter."""
        aside = self.repository.parent / "version"
        shutil.copytree(self.ready / "1", aside)
        for file in adapter.iterdir():
            shutil.copy(file, aside / "adapter" / file.name)
        aside.rename(self.repository / "late" / "2")
        self.client.load_model("late")
        _ask(self.client, "late")

    def remove(self) -> None:
        """Unload, then delete."""
        self.client.unload_model("late")
        shutil.rmtree(self.repository / "late")

    def cycle(self, adapter: Path) -> float:
        """All of it once; seconds the adding took."""
        took = self.add()
        set_weight(self.repository / "late" / "config.pbtxt", 5)
        self.client.load_model("late")
        self.new_version(adapter)
        self.remove()
        return took


def _under_load(changer: Changer, adapter: Path, plan: Plan) -> tuple[Outcome, list[float]]:
    """The load in a thread, changes until it ends."""
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
    """Adding on an idle server and under load, and what the load noticed."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        repository = root / "repository"
        write_backbone(repository)
        adapters = write_adapters(root, 3)
        for number in range(4):
            write_task(repository, f"task{number}", number, adapter=adapters[0] if number % 2 else None)
        write_task(root / "ready", "late", 9, adapter=adapters[1])
        with serving(repository) as server:
            before = backbone_process(server).pid
            changer = Changer(repository, root / "ready" / "late", server.grpc_url)
            idle = [changer.cycle(adapters[2]) for _ in range(5 if quick else 25)]
            names = [f"task{number}" for number in range(4)]
            requests, seconds, taken = 0, 15.0, []
            failures = 0
            while requests < (2_000 if quick else REQUESTS):
                plan = closed(server.grpc_url, names, texts_of_length(8, 512), clients=32, seconds=seconds)
                outcome, took = _under_load(changer, adapters[2], plan)
                requests += outcome.requests
                failures += outcome.failures
                taken += took
            same_process = backbone_process(server).pid == before
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
    """Milliseconds from the rename to the engine's next decision, idle."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        write_backbone(repository)
        for number in range(20):
            write_task(repository, f"task{number}", number)
        config = BackboneConfig(model=subject().model, threads=1)

        def runtime(cost: Any) -> Any:
            file = repository / "minilm" / "config.pbtxt"
            return TextEncoderRuntime(config, file, torch.device("cpu"), 32, cost.predict)

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
    """All of it."""
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
