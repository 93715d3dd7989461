"""Overhead: the processor time of a request besides the backbone's forward, by part, in microseconds of one core.

Ten LoRA tasks of 16 tokens, saturated (closed loop, 64 clients). Processor time of each process, and of each thread of
the backbone's process, in the measurement window, per request; the engine thread's is divided by py-spy's samples of
its stack. `intake` (reading a request, tokenising it), `schedule` and `engine` (everything else on the engine thread)
lie between receiving a request and the forward; `reply` is head and sending, `stub` Triton's own threads in the
backbone's process, `server` tritonserver. The flame graph of the same load goes to docs/.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness.arms import Arm, lora_tasks, shared
from benchmarks.harness.compare import against
from benchmarks.harness.drawing import picture
from benchmarks.harness.repositories import texts_of_length
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Plan, Stream
from fmplex_backend.types import REPLY_THREADS

TOKENS, TASKS, CLIENTS = 16, 10, 64
BEFORE_US, SCHEDULE_US = 350.0, 50.0
FLAMES = Path("docs/flame-backbone.svg")
HZ = 250
ROLES = {"MainThread": "intake", "fmplex-engine": "engine", "fmplex-metrics": "metrics"} | {
    f"fmplex-reply-{number}": "reply" for number in range(REPLY_THREADS)
}
# Parts of the engine thread by a mark in a frame; the frame nearest to the leaf decides.
ENGINE = {"families/forward.py": "forward", "fmplex_backend/scheduling/": "schedule"}
BEFORE = ("intake", "schedule", "engine")


def part_of(stack: str) -> str:
    """A folded stack of the engine thread, root first -> the part it belongs to."""
    for frame in reversed(stack.split(";")):
        for mark, part in ENGINE.items():
            if mark in frame:
                return part
    return "engine"


def spy(process: psutil.Process, *arguments: str) -> str:
    """Run py-spy on a process; returns its output."""
    binary = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or "py-spy"
    done = subprocess.run(
        [binary, *arguments, "--pid", str(process.pid), "--nonblocking"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"py-spy failed:\n{done.stderr[-1000:]}")
    return done.stdout


def record(process: psutil.Process, seconds: float, form: str, target: Path) -> None:
    """Sample the stacks of running threads into `target`."""
    spy(process, "record", "-d", str(round(seconds)), "-r", str(HZ), "-t", "-f", form, "-o", str(target))


def engine_shares(folded: Path) -> dict[str, float]:
    """Shares of the engine thread's samples, by part."""
    counts: dict[str, int] = {}
    for line in folded.read_text(encoding="utf-8").splitlines():
        stack, count = line.rsplit(" ", 1)
        if "fmplex-engine" in stack.split(";")[0]:
            counts[part_of(stack)] = counts.get(part_of(stack), 0) + int(count)
    total = sum(counts.values())
    return {part: count / total for part, count in counts.items()}


def thread_seconds(process: psutil.Process, names: dict[int, str]) -> dict[str, float]:
    """Processor time by role; threads without a Python name are those of Triton's stub."""
    spent: dict[str, float] = {}
    for thread in process.threads():
        role = ROLES.get(names.get(thread.id, ""), "stub")
        spent[role] = spent.get(role, 0.0) + thread.user_time + thread.system_time
    return spent


def _round(arm: Arm, plan: Plan, generator: Generator, folder: Path) -> dict[str, float]:
    """Two loads: one for processor times, and one with py-spy for the engine's stacks, which slows it down."""
    backbone, server = arm.server.stub(), arm.server.process
    names = {each["os_thread_id"]: each["thread_name"] for each in json.loads(spy(backbone, "dump", "--json"))}
    spent: dict[str, float] = {}

    def now() -> dict[str, float]:
        return thread_seconds(backbone, names) | {"server": sum(server.cpu_times()[:2])}

    def watch() -> None:
        before = now()
        time.sleep(plan.seconds)
        spent.update({role: seconds - before.get(role, 0.0) for role, seconds in now().items()})

    outcome = generator.run(plan, beside=watch)
    folded = folder / "folded"
    generator.run(plan, beside=lambda: record(backbone, plan.seconds, "raw", folded))
    parts = {role: seconds / outcome.answered * 1e6 for role, seconds in spent.items()}
    engine = parts.pop("engine")
    parts |= {part: share * engine for part, share in engine_shares(folded).items()}
    return parts | {"client": 1e6 / outcome.ceiling, "per_second": outcome.per_second}


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """One row, and the flame graph."""
    rounds, seconds = (1, 3.0) if quick else (5, 5.0)
    texts = texts_of_length(TOKENS, 512)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tasks = stack.enter_context(lora_tasks(TASKS))
        arm = stack.enter_context(shared(tasks))
        generator = stack.enter_context(Generator(subject().apart.generator))
        plan = Plan(arm.url, [Stream([task.name for task in tasks], texts, CLIENTS)], seconds)
        seen = [_round(arm, plan, generator, folder) for _ in range(rounds)]
        process = arm.server.stub()
        generator.run(plan, beside=lambda: record(process, seconds, "flamegraph", folder / "flames.svg"))
        if subject().stretch == 1:  # the docs show MiniLM's
            FLAMES.write_text(_without_paths((folder / "flames.svg").read_text(encoding="utf-8")), encoding="utf-8")
    parts = sorted({name for each in seen for name in each} - {"per_second"})
    medians = {name: statistics.median(each.get(name, 0.0) for each in seen) for name in parts}
    return [
        {
            "parts_us": medians,
            "before_us": statistics.median(sum(each.get(part, 0.0) for part in BEFORE) for each in seen),
            "per_second": statistics.median(each["per_second"] for each in seen),
            "rounds": rounds,
            "cores": str(subject().apart),
        }
    ]


def _without_paths(svg: str) -> str:
    """Remove this machine's folders from the picture: frames keep the path inside their package."""
    svg = re.sub(r"[^\s\"<>]*/py-spy record [^<\"]*", "the backbone's process under load", svg)
    for folder in sorted({str(Path.cwd()), sys.prefix, sys.base_prefix, str(Path.home())}, key=len, reverse=True):
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
    """A bar per part."""

    def bars(axes: Any) -> None:
        parts = sorted(rows[0]["parts_us"].items(), key=lambda part: part[1])
        axes.barh([name for name, _ in parts], [value for _, value in parts], color="#0b6e4f")
        axes.set_xlabel("microseconds of one core per request")
        axes.set_xscale("log")

    picture("overhead", bars)


if __name__ == "__main__":
    show(run())
