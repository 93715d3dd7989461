"""Overhead: what a request costs besides the backbone's forward, in its parts, in microseconds of one core.

Ten LoRA tasks of 16 tokens under saturation (closed loop, 64 clients). Processor time of each process in the counted
time, per request; the backbone's process is divided among its parts by where py-spy finds its threads at work. Of the
parts, `intake`, `tokenise`, `schedule` and `engine` lie between receiving a request and the forward. The flame graph
of the same load goes to docs/.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.arms import APART, Arm, lora_tasks, shared
from benchmarks.compare import against
from benchmarks.drawing import picture
from benchmarks.load import Generator, Outcome, Plan, Stream
from benchmarks.repositories import texts_of_length
from benchmarks.serving import backbone_process

TOKENS, TASKS, CLIENTS = 16, 10, 64
BEFORE_US, SCHEDULE_US = 350.0, 50.0
FLAMES = Path("docs/flame-backbone.svg")
HZ = 250
# The first that is found in a stack, from its leaf up, names the part.
PARTS = {
    "_forward (": "forward",
    "applied (": "forward",
    "(fmplex_backend/scheduling/": "schedule",
    "_tokenize (": "tokenise",
    "prepare (": "tokenise",
    "decode (": "decode",
    "_send (": "reply",
    "_reply_forever (": "reply",
    "execute (": "intake",
    "publish (": "metrics",
    "step (": "engine",
    "run_forever (": "engine",
}
BEFORE = ("intake", "tokenise", "schedule", "engine")


def part_of(stack: str) -> str:
    """A folded stack, root first -> the part it belongs to."""
    for frame in reversed(stack.split(";")):
        for mark, part in PARTS.items():
            if mark in frame:
                return part
    return "other"


def sample(process: psutil.Process, seconds: float, form: str, target: Path) -> None:
    """Let py-spy watch a process; only threads at work count."""
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or "py-spy"
    line = [
        spy,
        "record",
        "-p",
        str(process.pid),
        "-d",
        str(round(seconds)),
        "-r",
        str(HZ),
        "-f",
        form,
        "-o",
        str(target),
    ]
    done = subprocess.run([*line, "--nonblocking"], capture_output=True, text=True, check=False)
    if not target.is_file():
        raise RuntimeError(f"py-spy failed:\n{done.stderr[-1000:]}")


def shares(folded: Path) -> dict[str, float]:
    """Of the samples, by part."""
    counts: dict[str, int] = {}
    for line in folded.read_text(encoding="utf-8").splitlines():
        stack, count = line.rsplit(" ", 1)
        part = part_of(stack)
        counts[part] = counts.get(part, 0) + int(count)
    total = sum(counts.values())
    return {part: count / total for part, count in counts.items()}


def _beside(work: Callable[[], None], plan: Plan, generator: Generator) -> Outcome:
    """Run a load, and something else from the end of its warm-up on."""

    def later() -> None:
        time.sleep(plan.warmup)
        work()

    thread = threading.Thread(target=later)
    thread.start()
    outcome = generator.run(plan)
    thread.join()
    return outcome


def _round(arm: Arm, plan: Plan, generator: Generator, folder: Path) -> dict[str, float]:
    """Two loads: one for the processors' time with nobody watching, one for the stacks."""
    processes = {"server": psutil.Process(arm.server.pid), "backbone": backbone_process(arm.server)}
    spent: dict[str, float] = {}

    def watch() -> None:
        before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
        time.sleep(plan.seconds)
        spent.update({name: sum(process.cpu_times()[:2]) - before[name] for name, process in processes.items()})

    outcome = _beside(watch, plan, generator)
    each = {name: seconds / outcome.answered * 1e6 for name, seconds in spent.items()}
    folded = folder / "folded"
    _beside(lambda: sample(processes["backbone"], plan.seconds, "raw", folded), plan, generator)
    parts = {part: share * each["backbone"] for part, share in shares(folded).items()}
    folded.unlink()
    client = 1e6 / outcome.ceiling
    return {"server": each["server"], "client": client, "per_second": outcome.per_second, **parts}


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """One row, and the flame graph."""
    rounds, seconds = (1, 3.0) if quick else (5, 6.0)
    texts = texts_of_length(TOKENS, 512)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tasks = stack.enter_context(lora_tasks(TASKS))
        arm = stack.enter_context(shared(tasks))
        generator = stack.enter_context(Generator(APART.others[0]))
        plan = Plan(arm.url, [Stream([task.name for task in tasks], texts, CLIENTS)], seconds)
        seen = [_round(arm, plan, generator, folder) for _ in range(rounds)]
        process = backbone_process(arm.server)
        _beside(lambda: sample(process, seconds, "flamegraph", folder / "flames.svg"), plan, generator)
        FLAMES.write_text(_without_paths((folder / "flames.svg").read_text(encoding="utf-8")), encoding="utf-8")
    parts = sorted({name for each in seen for name in each} - {"per_second"})
    medians = {name: statistics.median(each.get(name, 0.0) for each in seen) for name in parts}
    return [
        {
            "parts_us": medians,
            "before_us": statistics.median(sum(each.get(part, 0.0) for part in BEFORE) for each in seen),
            "per_second": statistics.median(each["per_second"] for each in seen),
            "rounds": rounds,
            "cores": str(APART),
        }
    ]


def _without_paths(svg: str) -> str:
    """No folder of this machine in a picture for others."""
    for folder in sorted({str(Path.cwd()), str(Path(subprocess.__file__).parent), str(Path.home())}, key=len)[::-1]:
        svg = svg.replace(f"{folder}/", "")
    return svg


def show(rows: list[dict[str, Any]]) -> None:
    """The sum against its target, then the parts."""
    for row in rows:
        parts = row["parts_us"]
        print(
            f"between receiving and the forward: {row['before_us']:.0f} us a request "
            f"({against(row['before_us'], BEFORE_US, at_most=True)}), of it "
            f"scheduling {parts.get('schedule', 0.0):.0f} us "
            f"({against(parts.get('schedule', 0.0), SCHEDULE_US, at_most=True)})"
        )
        listed = ", ".join(f"{name} {value:.0f}" for name, value in sorted(parts.items(), key=lambda part: -part[1]))
        print(f"    all parts, us: {listed}; {row['per_second']:.0f} requests/s; {row['rounds']} rounds")


def draw(rows: list[dict[str, Any]]) -> None:
    """A bar a part."""

    def bars(axes: Any) -> None:
        parts = sorted(rows[0]["parts_us"].items(), key=lambda part: part[1])
        axes.barh([name for name, _ in parts], [value for _, value in parts], color="#0b6e4f")
        axes.set_xlabel("microseconds of one core per request")
        axes.set_xscale("log")

    picture("overhead", bars)


if __name__ == "__main__":
    show(run())
