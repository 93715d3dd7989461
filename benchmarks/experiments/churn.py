"""Change under load: a task is added, re-weighted, given a new version and removed, a step every 200 ms, at 70% load.

Four other tasks are called meanwhile (4 tokens, Poisson). The same load without changes takes turns with it; what
counts is failed requests, and the others' p99 with changes against without.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.experiments.changes import Changer
from benchmarks.harness.compare import against, interleave, ratio, spread, text
from benchmarks.harness.drawing import COLOURS, picture
from benchmarks.harness.repositories import texts_of_length, write_adapters, write_backbone, write_task
from benchmarks.harness.serving import pin_apart, serving
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Outcome, Plan, Stream
from benchmarks.load.arrivals import poisson

TOKENS, TASKS = 4, 4
LOAD = 0.7
EVERY_S = 0.2
P99, REQUESTS = 1.1, 50_000


class Churn:
    """Adds, changes and removes a task in a thread of its own, a step every EVERY_S, until the block ends."""

    def __init__(self, changer: Changer, adapter: Path) -> None:
        self.steps = 0
        self._changer, self._adapter = changer, adapter
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Churn:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        os.sched_setaffinity(0, subject().apart.others)  # this thread's: on the clients' core, not the backbone's
        while True:
            for step in (self._changer.add, self._changer.change_weight, self._renew, self._changer.remove):
                start = time.monotonic()
                step()
                self.steps += 1
                self._stop.wait(max(0.0, EVERY_S - (time.monotonic() - start)))
            if self._stop.is_set():
                return

    def _renew(self) -> None:
        self._changer.new_version(self._adapter)


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Rounds without and with changes, in turn."""
    rounds, seconds = (2, 2.0) if quick else (9, 11.8)  # enough of them for REQUESTS
    texts = texts_of_length(TOKENS, 512)
    names = [f"task{number}" for number in range(TASKS)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        adapters = write_adapters(root, 3)
        write_backbone(root / "repository")
        for number, name in enumerate(names):
            write_task(root / "repository", name, number, adapter=adapters[0] if number % 2 else None)
        write_task(root / "ready", "late", 9, adapter=adapters[1])
        with (
            serving(root / "repository") as server,
            server.client() as client,
            Generator(subject().apart.generator) as generator,
        ):
            pin_apart(server)
            changer = Changer(server, client, root / "ready" / "late")
            full = Plan(server.grpc_url, [Stream(names, texts, 64)], 4.0)
            capacity = statistics.median(generator.run(full).per_second for _ in range(3))
            steps = 0

            def load(number: int, seconds: float) -> Outcome:
                times = poisson(LOAD * capacity, seconds + 1, number)
                return generator.run(Plan(server.grpc_url, [Stream(names, texts, times=times)], seconds))

            def quiet(number: int) -> Outcome:
                return load(number, seconds / 3)

            def changing(number: int) -> Outcome:
                nonlocal steps
                with Churn(changer, adapters[2]) as churn:
                    outcome = load(number, seconds)
                steps += churn.steps
                return outcome

            seen = interleave({"quiet": quiet, "changing": changing}, rounds)
    return [_row(seen, capacity, steps)]


def _row(seen: dict[str, list[Outcome]], capacity: float, steps: int) -> dict[str, Any]:
    p99 = {name: [each.p99_ms for each in results] for name, results in seen.items()}
    return {
        "capacity": capacity,
        "steps": steps,
        "p99_ms": {name: spread(values) for name, values in p99.items()},
        "ratio": ratio(p99["changing"], p99["quiet"]),
        "requests": sum(each.offered for each in seen["changing"]),
        "failures": sum(each.failures for each in seen["changing"]),
        "errors": [error for each in seen["changing"] for error in each.errors][:5],
        "rounds": len(p99["quiet"]),
        "cores": str(subject().apart),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Two lines."""
    for row in rows:
        print(
            f"{row['failures']} of {row['requests']} requests failed during {row['steps']} changes (target 0 of "
            f"{REQUESTS}); load {LOAD:.0%} of {row['capacity']:.0f} requests/s"
        )
        p99 = row["p99_ms"]
        print(
            f"the others' p99 {text(p99['changing'], '.0f')} ms with changes, {text(p99['quiet'], '.0f')} without: "
            f"{text(row['ratio'], '.2f')} ({against(row['ratio']['median'], P99, at_most=True)})"
        )


def draw(rows: list[dict[str, Any]]) -> None:
    """The others' p99 with and without changes."""
    (row,) = rows

    def bars(axes: Any) -> None:
        for place, p99 in enumerate(row["p99_ms"].values()):
            error = [[p99["median"] - p99["low"]], [p99["high"] - p99["median"]]]
            axes.bar(place, p99["median"], 0.6, yerr=error, color=COLOURS["bfq"])
        axes.set_xticks(range(len(row["p99_ms"])), [f"{name} ({row['rounds']} rounds)" for name in row["p99_ms"]])
        axes.set_ylabel("p99 of the other tasks, ms")

    picture("churn", bars)


if __name__ == "__main__":
    show(run())
