"""Replay: production traffic instead of Poisson, at 70% load, against the same mean rate without its bursts.

Two tasks get the arrivals and prompt lengths of the two Azure LLM inference traces (2023: conversation and code), a
third the arrivals of the Azure Functions trace (2021), each scaled to a third of the load. Lengths are the traces'
divided by 32, between 8 and 128 tokens. Arms in turn: bfq, fifo and a process for each task. Needs `--data`, a folder
with azure_llm_2023/ and azure_functions_sample/.
"""

from __future__ import annotations

import bisect
import contextlib
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness.arms import Arm, Task, per_task, shared
from benchmarks.harness.compare import interleave, ratio, spread, text
from benchmarks.harness.drawing import COLOURS, picture
from benchmarks.harness.repositories import texts_of_length
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Outcome, Plan, Stream
from benchmarks.load.arrivals import poisson
from benchmarks.load.traces import read_trace, replay

FILES = {
    "conversation": "azure_llm_2023/AzureLLMInferenceTrace_conv.csv",
    "code": "azure_llm_2023/AzureLLMInferenceTrace_code.csv",
    "functions": "azure_functions_sample/Azure2021_200.csv",
}
LENGTHS = (8, 16, 32, 64, 128)
SHRINK, PLAIN, LOAD = 32, 16, 0.7  # PLAIN: tokens where the trace does not say


def run(*, quick: bool = False, data: Path) -> list[dict[str, Any]]:
    """Two rows: the traces' arrivals and Poisson ones, each on all arms in turn."""
    rounds, seconds = (2, 4.0) if quick else (5, 8.0)
    texts = {tokens: texts_of_length(tokens, 128 * len(FILES)) for tokens in LENGTHS}
    traces = {name: read_trace(data / file) for name, file in FILES.items()}
    tasks = [Task(name) for name in FILES]

    def streams(kind: str, number: int, rate: float) -> list[Stream]:
        made = []
        for seed, (name, trace) in enumerate(traces.items()):
            part = replay(trace, rate, seconds + 1, offset=500 * number)
            places = range(seed, len(FILES) * len(part), len(FILES))  # other texts for each: equal ones share rows
            own = [_text(texts, arrival.tokens, place) for place, arrival in zip(places, part, strict=True)]
            times = [arrival.time for arrival in part]
            if kind == "Poisson":  # with the same lengths in the same order
                times = poisson(rate, seconds + 1, 10 * number + seed)
            made.append(Stream([name], own, times=times))
        return made

    with contextlib.ExitStack() as stack:
        arms = {name: stack.enter_context(shared(tasks, scheduler=name)) for name in ("bfq", "fifo")}
        arms["per-task"] = stack.enter_context(per_task(tasks))
        generator = stack.enter_context(Generator(subject().apart.generator))
        mixed = [stream.texts[place] for place in range(64) for stream in streams("trace", 0, 100.0)]
        full = Plan(arms["bfq"].url, [Stream([task.name for task in tasks], mixed, 64)], seconds)
        capacity = statistics.median(generator.run(full).per_second for _ in range(3))

        def measure(arm: Arm, kind: str) -> Any:
            return lambda number: generator.run(
                Plan(arm.url, streams(kind, number, LOAD * capacity / len(FILES)), seconds)
            )

        return [
            _row(kind, capacity, interleave({name: measure(arm, kind) for name, arm in arms.items()}, rounds))
            for kind in ("trace", "Poisson")
        ]


def _text(texts: dict[int, list[str]], tokens: int, place: int) -> str:
    """A text of the smallest length that is not shorter."""
    wanted = tokens / SHRINK if tokens else PLAIN
    own = texts[LENGTHS[min(bisect.bisect_left(LENGTHS, wanted), len(LENGTHS) - 1)]]
    return own[place % len(own)]


def _row(kind: str, capacity: float, seen: dict[str, list[Outcome]]) -> dict[str, Any]:
    means = {name: [each.mean_ms for each in results] for name, results in seen.items()}
    return {
        "kind": kind,
        "capacity": capacity,
        "mean_ms": {name: spread(values) for name, values in means.items()},
        "p99_ms": {name: statistics.median(each.p99_ms for each in results) for name, results in seen.items()},
        "mean_ratio": {name: ratio(means["bfq"], means[name]) for name in means if name != "bfq"},
        "failures": sum(each.failures for results in seen.values() for each in results),
        "rounds": len(means["bfq"]),
        "cores": str(subject().apart),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A line per row."""
    for row in rows:
        parts = [f"{name} {text(mean, '.0f')}/{row['p99_ms'][name]:.0f}" for name, mean in row["mean_ms"].items()]
        ratios = ", ".join(f"{text(value, '.2f')} of {name}'s" for name, value in row["mean_ratio"].items())
        print(f"{row['kind']} at {LOAD:.0%} of {row['capacity']:.0f} texts/s: mean/p99 ms {', '.join(parts)}; {ratios}")


def draw(rows: list[dict[str, Any]]) -> None:
    """Mean latency of each arm, grouped by row."""

    def bars(axes: Any) -> None:
        for place, row in enumerate(rows):
            for turn, (name, mean) in enumerate(row["mean_ms"].items()):
                at, label = place + 0.25 * (turn - 1), None if place else name
                axes.bar(at, mean["median"], 0.23, color=COLOURS[name], label=label)
        axes.set_xticks(range(len(rows)), [row["kind"] for row in rows])
        axes.set_ylabel("mean latency, ms")
        axes.legend(fontsize=7)

    picture("replay", bars)


if __name__ == "__main__":
    show(run(data=Path(sys.argv[1])))
