"""Malformed directories: 500 of a fuzzer's are put into the repository while good tasks are asked.

Two tasks, one of them with LoRA, are sent texts of 16 tokens at half of the highest rate, Poisson arrivals, open loop,
in windows of ten seconds by turns:

* alone: nothing happens to the repository;
* beside: 50 directories are removed that were put there in the turn before, and 50 others come, as the tests have them
  (testing/hostile_directories.py): spoilt files, configs, weights, names and versions, taken tags, some that are sound.
  The controller beside the server loads what can be served and says of the rest in an ERROR.txt why not.

Both get the same arrivals in a turn. After each window, with the directories still there, the good tasks are asked for
answers once more, which are compared with those of the beginning.

Target: p99 beside is at most 1.5 times that alone, no request fails, the answers are the same bit for bit, the
backbone's process is the same, and every directory has its reason. The backbone's process on one core, Triton and the
clients on the other; the controller and what moves the directories run on both, as they can.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.arms import Arm, Task, lora_tasks, shared
from benchmarks.harness.compare import against, ratio, spread, text
from benchmarks.harness.repositories import texts_of_length
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Outcome, Plan, Stream, closed
from benchmarks.load.arrivals import poisson
from testing.clients import Outputs, Question
from testing.controllers import controller
from testing.hostile_directories import Directories, Hostile, has_its_reason, same_bits
from testing.servers import eventually

DIRECTORIES, WAVE = 500, 50
FIRST_TAG = 10
TOKENS, LOAD, CLIENTS = 16, 0.5, 64
WINDOW_S, WARM_S = 10.0, 1.0
SETTLED_S = 60.0
ASKED = 8  # texts whose answers are compared
TARGET = 1.5


@dataclass
class Put:
    """The directories that are in the repository, and what has become of all so far."""

    arm: Arm
    make: Directories
    aside: Path  # on the repository's file system
    here: list[Hostile] = field(default_factory=list)
    next: list[Hostile] = field(default_factory=list)
    quarantined: int = 0
    served: int = 0

    def prepare(self, seeds: Sequence[int]) -> None:
        """Build the next ones, which takes time that is nobody's."""
        for place, seed in enumerate(seeds):
            with contextlib.suppress(OSError):  # a name that two seeds give, or that is too long
                self.next.append(self.make.put(self.aside, seed, FIRST_TAG + place))

    def exchange(self) -> None:
        """Remove those that are there, and move the next ones in."""
        self.remove()
        while self.next:
            self.here.append(self.next.pop().moved_to(self.arm.server.repository))

    def settle(self) -> None:
        """Wait until each is served or says why not."""
        for each in self.here:
            said = partial(has_its_reason, self.arm.server, each)
            eventually(said, f"{each.path!r} ({each.what}) is served, or says why not", SETTLED_S)
        bad = sum(each.is_quarantined for each in self.here)
        self.quarantined, self.served = self.quarantined + bad, self.served + len(self.here) - bad

    def remove(self) -> None:
        """Those that are there."""
        while self.here:
            self.here.pop().remove()


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """One row."""
    turns = 2 if quick else DIRECTORIES // WAVE
    with contextlib.ExitStack() as stack:
        (adapted,) = stack.enter_context(lora_tasks(1))
        tasks = [adapted, Task("plain")]
        arm = stack.enter_context(shared(tasks))
        put = stack.enter_context(_putting(arm, len(tasks)))
        generator = stack.enter_context(Generator(subject().apart.generator))
        texts, names = texts_of_length(TOKENS, 512), [task.name for task in tasks]
        stub, before = arm.server.stub().pid, _answers(arm, names, texts)
        stack.enter_context(controller(arm.server))
        full = closed(arm.url, names, texts, clients=CLIENTS, seconds=2.0)
        rate = LOAD * statistics.median(generator.run(full).per_second for _ in range(3))
        alone: list[Outcome] = []
        beside: list[Outcome] = []
        differ = 0
        for turn in range(turns):
            plan = _plan(arm.url, names, texts, rate, turn)
            alone.append(generator.run(plan))
            put.prepare(range(turn * WAVE, (turn + 1) * WAVE))
            beside.append(generator.run(plan, beside=put.exchange))
            put.settle()
            after = _answers(arm, names, texts)
            differ += sum(not same_bits(one, other) for one, other in zip(before, after, strict=True))
        is_same = arm.server.stub().pid == stub
    return [
        _row(alone, beside)
        | {"rate": rate, "quarantined": put.quarantined, "served": put.served}
        | {"compared": len(before) * turns, "differ": differ, "same_process": is_same}
    ]


@contextlib.contextmanager
def _putting(arm: Arm, tasks: int) -> Iterator[Put]:
    with tempfile.TemporaryDirectory(dir=arm.server.repository.parent) as folder:
        aside = Path(folder, "aside")
        aside.mkdir()
        put = Put(arm, Directories(Path(folder, "sound"), range(tasks)), aside)
        try:
            yield put
        finally:
            put.remove()


def _plan(url: str, names: Sequence[str], texts: list[str], rate: float, turn: int) -> Plan:
    streams = [
        Stream([name], texts, times=poisson(rate / len(names), WINDOW_S + WARM_S, seed=10 * turn + number))
        for number, name in enumerate(names)
    ]
    return Plan(url, streams, WINDOW_S, WARM_S)


def _answers(arm: Arm, names: Sequence[str], texts: Sequence[str]) -> list[Outputs]:
    """One after the other, each a batch of its own: in other batches the last bits of a product may be others."""
    with arm.server.client() as client:
        return [client.ask(Question(name, (each,))).good() for name in names for each in texts[:ASKED]]


def _row(alone: Sequence[Outcome], beside: Sequence[Outcome]) -> dict[str, Any]:
    p99s = {"alone": [each.p99_ms for each in alone], "beside": [each.p99_ms for each in beside]}
    p50s = {"alone": [each.p50_ms for each in alone], "beside": [each.p50_ms for each in beside]}
    return {
        "p99_ms": {arm: spread(each) for arm, each in p99s.items()},
        "p50_ms": {arm: spread(each) for arm, each in p50s.items()},
        "p99_ratio": ratio(p99s["beside"], p99s["alone"]),
        "p50_ratio": ratio(p50s["beside"], p50s["alone"]),
        "max_ms": {"alone": max(each.max_ms for each in alone), "beside": max(each.max_ms for each in beside)},
        "requests": sum(each.offered for each in beside),
        "failures": sum(each.failures for each in beside),
        "errors": sum((Counter(each.errors) for each in beside), Counter()),
        "alone_failures": sum(each.failures for each in alone),
        "turns": len(beside),
        "cores": str(subject().apart),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Two lines."""
    for row in rows:
        p99 = row["p99_ms"]
        print(
            f"{row['quarantined'] + row['served']} directories of the fuzzer: {row['quarantined']} have an ERROR.txt, "
            f"{row['served']} are served; {row['differ']} of {row['compared']} answers of good tasks differ in a bit; "
            f"the backbone's process {'stayed' if row['same_process'] else 'CHANGED'}"
        )
        print(
            f"the good tasks' p99 beside them {text(p99['beside'], '.1f')} ms, {text(row['p99_ratio'], '.2f')} times "
            f"that alone ({against(row['p99_ratio']['median'], TARGET, at_most=True)}); "
            f"{row['failures']} of {row['requests']} requests failed; {row['turns']} turns"
        )
        for error, count in sorted(row["errors"].items()):
            print(f"    {count} failed: {error}")


if __name__ == "__main__":
    show(run())
