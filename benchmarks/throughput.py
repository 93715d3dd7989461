"""What sharing costs: ten tasks through the server against the bare backbone on the same texts.

Closed loop, 64 clients, batch size 32; the backbone's process on one core, Triton and the clients on the other. The
bare loop runs on the backbone's core, the server idle meanwhile, in turn with the served arm.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bare import Bare
from benchmarks.load import Generator, closed
from benchmarks.repositories import texts_of_length, write_adapters, write_backbone, write_task
from benchmarks.serving import pin_apart, serving

TASKS = 10


@dataclass(frozen=True, slots=True)
class Point:
    """A kind of tasks, a length and the ratio to reach."""

    kind: str
    tokens: int
    target: float


POINTS = (Point("lora", 64, 0.93), Point("head", 64, 0.97), Point("lora", 16, 0.82), Point("head", 16, 0.87))


def measure(point: Point, rounds: int, seconds: float) -> dict[str, Any]:
    """Interleaved rounds of one point."""
    texts = texts_of_length(point.tokens, 512)
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "repository")
        write_backbone(repository)
        adapters = write_adapters(Path(folder), TASKS) if point.kind == "lora" else [None] * TASKS
        names = [f"task{number}" for number in range(TASKS)]
        for number, name in enumerate(names):
            write_task(repository, name, number, adapter=adapters[number])
        with serving(repository) as server, Bare(texts, 32, core=0) as bare, Generator(1) as generator:
            pin_apart(server)
            served, limit, batches = [], [], []
            for _ in range(rounds):
                outcome = generator.run(closed(server.grpc_url, names, texts, seconds=seconds))
                if outcome.failures:
                    raise RuntimeError(f"{outcome.failures} requests failed")
                served.append(outcome.per_second)
                batches.append(outcome.batch_items)
                limit.append(bare.per_second(seconds))
    ratios = [a / b for a, b in zip(served, limit, strict=True)]
    return {
        "kind": point.kind,
        "tokens": point.tokens,
        "target": point.target,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "served_per_s": statistics.median(served),
        "bare_per_s": statistics.median(limit),
        "batch_items": statistics.mean(batches),
        "rounds": rounds,
    }


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """All points."""
    if quick:
        return [measure(point, rounds=2, seconds=2) for point in POINTS[2:3]]
    return [measure(point, rounds=5, seconds=4 if point.tokens > 16 else 2) for point in POINTS]


def show(rows: list[dict[str, Any]]) -> None:
    """A line each."""
    for row in rows:
        print(
            f"{TASKS} {row['kind']:4} tasks, {row['tokens']:3} tokens: {row['ratio']:.3f} of bare "
            f"(target {row['target']}; {row['ratio_min']:.3f} to {row['ratio_max']:.3f} in {row['rounds']} rounds); "
            f"{row['served_per_s']:.1f} against {row['bare_per_s']:.1f} texts/s, batches of {row['batch_items']:.1f}"
        )


if __name__ == "__main__":
    show(run())
