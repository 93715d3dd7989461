"""Recovery: the backbone's process is killed under load, and `fmplex serve` brings it back.

Eight clients ask six tasks, half of them with LoRA, with texts of 16 tokens and a deadline of 5 s a request. SIGKILL
comes at a random moment. The gap is from the kill to the moment at which every task has answered again; it is compared
with the seconds that a load of the backbone and its tasks takes by hand, on a server of its own beforehand.

Target: each gap is at most the load's seconds and 3 s more, and no request takes longer than 5 s. After each recovery
the controller is killed, too, and the next kill waits for its successor, so that each kill is the first that a
controller sees: further ones within ten minutes would let it wait before it loads again (docs/sidecar.md). Triton 2.51
itself ends at times when a stub is killed; `fmplex serve` starts it again then, and those are counted. It gives a
controller up that ends a sixth time in ten minutes: every fourth kill has a server of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness.compare import spread, text
from benchmarks.harness.foreground import foreground
from benchmarks.harness.repositories import BACKBONE, texts_of_length, write_adapters, write_backbone, write_task
from benchmarks.harness.serving import serving
from testing.clients import Answer, GrpcClient, Question
from testing.serve_command import ServeCommand
from testing.servers import Serving, eventually

TOKENS, TASKS, CLIENTS = 16, 6, 8
KILLS_EACH = 4  # of a server
DEADLINE_S = 5.0
MORE_S = 3.0  # than a load takes
SLACK_S = 0.5  # of a client that is told of its deadline
PAUSE_S = 0.1  # of a client that was refused: the load is to be of the tasks, not of refusals
BACK_S = 60.0
CALM_S = (1.0, 4.0)  # between a recovery and the next kill


@dataclass
class Crowd:
    """Clients that ask the tasks in turn, and when each task answered last."""

    url: str
    texts: list[str]
    names: list[str]
    answered_at: dict[str, float] = field(default_factory=dict)
    slowest_s: float = 0.0
    answers: int = 0
    failures: dict[str, int] = field(default_factory=dict)  # by status
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """For as long as the block lasts."""
        stop, numbers = threading.Event(), itertools.count()

        def ask(client: GrpcClient) -> None:
            while not stop.is_set():
                number = next(numbers)
                name = self.names[number % len(self.names)]
                question = Question(name, (self.texts[number % len(self.texts)],))
                answer = client.ask(question, DEADLINE_S)
                self._count(name, answer)
                if answer.error:
                    time.sleep(PAUSE_S)

        with GrpcClient(self.url) as client:
            threads = [threading.Thread(target=ask, args=(client,)) for _ in range(CLIENTS)]
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                stop.set()
                for thread in threads:
                    thread.join()

    def _count(self, name: str, answer: Answer) -> None:
        with self._lock:
            self.slowest_s = max(self.slowest_s, answer.seconds)
            if answer.error:
                self.failures[answer.status] = self.failures.get(answer.status, 0) + 1
            else:
                self.answers += 1
                self.answered_at[name] = time.monotonic()

    def all_answered_since(self, moment: float) -> bool:
        return all(self.answered_at.get(name, 0.0) > moment for name in self.names)


def load_seconds(server: Serving, names: list[str]) -> float:
    """Of the backbone and its tasks, by hand, until each has answered."""
    with server.client() as client:
        for name in (*names, BACKBONE):
            client.unload(name)
        start = time.monotonic()
        for name in (BACKBONE, *names):
            client.load(name)
        for name in names:
            client.ask_one(name, "hello").good()
        return time.monotonic() - start


@dataclass(frozen=True, slots=True)
class Gap:
    """What one kill has led to."""

    seconds: float  # until every task has answered again
    triton_ended: bool  # Triton itself, which `fmplex serve` has started again


def gap(served: ServeCommand, crowd: Crowd, calm_s: float) -> Gap:
    """Kill the backbone's process, and once every task has answered again the controller's."""
    calm = time.monotonic()
    eventually(lambda: crowd.all_answered_since(calm), "all tasks answer", BACK_S)
    time.sleep(calm_s)
    triton, stub, controller = served.tritonserver, served.stub(BACKBONE), served.controller
    if triton is None or stub is None or controller is None:
        raise RuntimeError("Triton, the backbone's process or the controller has ended before it was killed")
    stub.kill()
    killed = time.monotonic()
    eventually(lambda: _is_another(served.stub(BACKBONE), stub), "the backbone has another process", BACK_S)
    loaded = time.monotonic()  # an answer that the former process has sent may come late
    eventually(lambda: crowd.all_answered_since(loaded), "all tasks answer again", BACK_S)
    found = Gap(max(crowd.answered_at.values()) - killed, _is_another(served.tritonserver, triton))
    controller.kill()
    eventually(lambda: _is_another(served.controller, controller), "there is another controller", BACK_S)
    return found


def _is_another(now: psutil.Process | None, before: psutil.Process) -> bool:
    return now is not None and now != before


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """One row."""
    kills = 3 if quick else 20
    names = [f"task{number}" for number in range(TASKS)]
    moments = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        adapters = write_adapters(root, TASKS // 2)
        write_backbone(root / "repository")
        for number, name in enumerate(names):
            write_task(root / "repository", name, number, adapter=adapters[number // 2] if number % 2 else None)
        with serving(root / "repository") as server:
            loads = [load_seconds(server, names) for _ in range(3)]
        crowds: list[Crowd] = []
        gaps: list[Gap] = []
        while len(gaps) < kills:
            with foreground(root / "repository") as served:
                crowds.append(crowd := Crowd(served.grpc_url, texts_of_length(TOKENS, 512), names))
                with crowd.asking():
                    for _ in range(min(KILLS_EACH, kills - len(gaps))):
                        gaps.append(gap(served, crowd, moments.uniform(*CALM_S)))
    return [
        {
            "kills": kills,
            "load_s": spread(loads),
            "gap_s": spread([each.seconds for each in gaps]),
            "gaps_s": [each.seconds for each in gaps],
            "triton_ended": sum(each.triton_ended for each in gaps),
            "slowest_s": max(crowd.slowest_s for crowd in crowds),
            "answers": sum(crowd.answers for crowd in crowds),
            "failures": dict(sum((Counter(crowd.failures) for crowd in crowds), Counter())),
        }
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """Two lines."""
    for row in rows:
        most = row["load_s"]["median"] + MORE_S
        late = sum(each > most for each in row["gaps_s"])
        verdict = "met" if not late else f"MISSED in {late}"
        print(
            f"{row['kills']} kills: all tasks answer again after {text(row['gap_s'], '.1f')} s; a load by hand takes "
            f"{text(row['load_s'], '.1f')} s (target at most {MORE_S:g} s more, {verdict}); "
            f"Triton itself ended in {row['triton_ended']}"
        )
        said = "met" if row["slowest_s"] < DEADLINE_S + SLACK_S else "MISSED"
        failed = ", ".join(f"{count} {status}" for status, count in sorted(row["failures"].items())) or "none"
        print(
            f"the slowest request took {row['slowest_s']:.1f} s (target {DEADLINE_S:g}, {said}); "
            f"{row['answers']} answers, failed: {failed}"
        )


if __name__ == "__main__":
    show(run())
