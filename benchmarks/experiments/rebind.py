"""Tasks that change their backbones under load: how soon that is in force, what fails, and what it does to p99.

64 clients call six tasks on two backbones, whose processes share a core; Triton, the clients and what moves the tasks
have the other. Rounds in which tasks move take turns with rounds without: every 0.36 s two tasks, one of either
backbone, change places, so that both serve three tasks with as many adapters as in rounds without. A move is in force
when the server has loaded the entry: from then on it sends requests to the new backbone.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness.compare import against, interleave, ratio, text
from benchmarks.harness.repositories import model_directory, texts_of_length
from benchmarks.harness.serving import pin, serving
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Outcome, closed
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar.rebinding import rebind
from fmplex_controller.sidecar.triton import Triton
from testing import repositories
from testing.adapters import lora
from testing.servers import Serving

TASKS, CLIENTS, TOKENS = 6, 64, 16
BACKBONES = ("first", "second")
EVERY_S = 0.36
PAIRS = ((0, 3), (1, 2), (4, 5))  # of one backbone and the other, both with LoRA or none
MOVES, IN_FORCE_MS, P99 = 200, 50.0, 1.5


class Moves:
    """Moves a pair of tasks at a time in a thread of its own, one pair every EVERY_S, until the block ends.

    One that takes longer does not put off those after the next.
    """

    def __init__(self, server: Serving) -> None:
        self.seconds: list[float] = []
        self.problems: list[str] = []
        self._server = server
        self._place = {number: number % 2 for number in range(TASKS)}
        self._stop = threading.Event()

    def run(self) -> None:
        """Until stopped, or one fails."""
        os.sched_setaffinity(0, subject().apart.others)
        triton, pairs = Triton(self._server.grpc_url), itertools.cycle(PAIRS)
        due = time.monotonic() + EVERY_S
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += EVERY_S
            try:
                self.seconds += [self._move(triton, number) for number in next(pairs)]
            except Exception as error:
                self.problems.append(str(error))
                break
        triton.close()

    def _move(self, triton: Triton, number: int) -> float:
        """To the other backbone; seconds until it is in force."""
        self._place[number] = 1 - self._place[number]
        backbone = BACKBONES[self._place[number]]
        moved = rebind(self._server.repository, triton, f"task{number}", backbone, journal=Journal(), why="")
        assert moved is not None, "it was on the other one"
        return moved.seconds

    def during(self, run: Callable[[], Outcome]) -> Outcome:
        """Move tasks while `run` runs; its result."""
        self._stop.clear()
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            return run()
        finally:
            self._stop.set()
            thread.join()


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Rounds without and with moves, in turn."""
    rounds, seconds = (2, 4.0) if quick else (5, 8.0)
    texts = texts_of_length(TOKENS, 4096)
    names = [f"task{number}" for number in range(TASKS)]
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        _write(repository)
        with serving(repository) as server, Generator(subject().apart.generator) as generator:
            pin(server.process, *subject().apart.others)
            for stub in server.stubs().values():
                pin(stub, *subject().apart.models)
            before = {name: stub.pid for name, stub in server.stubs().items()}
            plan = closed(server.grpc_url, names, texts, clients=CLIENTS, seconds=seconds)
            moves = Moves(server)
            outcomes = interleave(
                {
                    "still": lambda _: generator.run(plan),
                    "moved": lambda _: moves.during(lambda: generator.run(plan)),
                },
                rounds,
            )
            same = before == {name: stub.pid for name, stub in server.stubs().items()}
    return [_row(outcomes, moves, same_processes=same)]


def _write(repository: Path) -> None:
    own = subject()
    for name in BACKBONES:
        settings = {"dtype": own.dtype, "family": "text-encoder", "threads": "1"}
        repositories.write_backbone(
            repository, name, model=own.model, max_batch_size=own.max_batch, kind=own.kind, **settings
        )
    for number in range(TASKS):
        task = repositories.Task(
            f"task{number}",
            number,
            adapter=lora() if number % 3 == 0 else None,
            labels=2,
            max_batch_size=own.max_batch,
            backbone=BACKBONES[number % 2],
            model=model_directory(),
            hidden=own.hidden,
        )
        repositories.write_task(repository, task)


def _row(outcomes: dict[str, list[Outcome]], moves: Moves, *, same_processes: bool) -> dict[str, Any]:
    milliseconds = sorted(seconds * 1e3 for seconds in moves.seconds)
    return {
        "moves": len(milliseconds),
        "problems": moves.problems,
        "in_force_ms": statistics.median(milliseconds) if milliseconds else 0.0,
        "in_force_max_ms": max(milliseconds, default=0.0),
        "within": sum(each < IN_FORCE_MS for each in milliseconds),
        "requests": sum(each.answered for each in outcomes["moved"]),
        "failures": sum(each.failures for each in outcomes["moved"]),
        "errors": [each.errors for each in outcomes["moved"] if each.errors],
        "p99_ms": {arm: statistics.median(each.p99_ms for each in own) for arm, own in outcomes.items()},
        "p99": ratio(*([each.p99_ms for each in outcomes[arm]] for arm in ("moved", "still"))),
        "rate": ratio(*([each.per_second for each in outcomes[arm]] for arm in ("moved", "still"))),
        "same_processes": same_processes,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Three lines."""
    for row in rows:
        print(
            f"{row['moves']} moves (target {MOVES}): in force after {row['in_force_ms']:.0f} ms (median; at most "
            f"{row['in_force_max_ms']:.0f}), {row['within']} of {row['moves']} under {IN_FORCE_MS:g} ms"
        )
        for problem in row["problems"]:
            print(f"    a move failed: {problem}")
        print(
            f"{row['failures']} of {row['requests']} requests failed; the backbones' processes "
            f"{'stayed' if row['same_processes'] else 'CHANGED'}"
        )
        print(
            f"p99 {row['p99_ms']['moved']:.0f} ms, {row['p99_ms']['still']:.0f} without moves: "
            f"{text(row['p99'])} of that ({against(row['p99']['median'], P99, at_most=True)}); throughput "
            f"{text(row['rate'])} of that"
        )


if __name__ == "__main__":
    show(run())
