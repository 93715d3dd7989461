"""Memory of tritonserver and the backbone's process with more and more tasks, as proportional set size.

Every figure is of a server of its own, after the same 40 requests spread over its tasks; servers with few and with many
tasks take turns. Language-model tasks have a LoRA each on SmolLM2-135M-Instruct. All run with MALLOC_ARENA_MAX=1: what
glibc keeps in per-thread arenas varies by 70 MiB from start to start, far more than the tasks take; with one arena it
still varies by 15 MiB. Shared pages count in proportion to their sharers, so no other process with torch should run
meanwhile.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import language_model
from benchmarks.harness.compare import against, interleave, ratio, spread, text
from benchmarks.harness.repositories import texts_of_length, write_adapters, write_backbone, write_task
from benchmarks.harness.serving import pss_mib, serving
from fmplex import Client
from testing.clients import Question

REQUESTS = 40
# kind, few, many, target, rounds
COMPARISONS = (("lora", 1, 10, 1.03, 3), ("language-model", 1, 10, 1.10, 3), ("head", 1, 100, 1.10, 1))


def memory(kind: str, count: int) -> float:
    """MiB of a server with `count` tasks."""
    with tempfile.TemporaryDirectory() as folder:
        return (_of_language_model if kind == "language-model" else _memory)(kind, count, Path(folder))


def _memory(kind: str, count: int, folder: Path) -> float:
    repository = folder / f"{kind}{count}"
    write_backbone(repository)
    adapters = write_adapters(folder / "adapters", count) if kind == "lora" else [None] * count
    for number, adapter in enumerate(adapters):
        write_task(repository, f"task{number}", number, adapter=adapter)
    texts = tuple(texts_of_length(64, 8))
    with serving(repository, MALLOC_ARENA_MAX="1") as server, server.client() as client:
        for number in range(REQUESTS):
            client.ask(Question(f"task{number % count}", texts)).good()
        return pss_mib(server)


def _of_language_model(kind: str, count: int, folder: Path) -> float:
    adapters = language_model.write_adapters(folder / "adapters", count)
    tasks = {f"task{number}": adapter for number, adapter in enumerate(adapters)}
    repository = folder / f"{kind}{count}"
    language_model.write_repository(repository, tasks)
    texts = language_model.texts([64] * REQUESTS, 0)
    with serving(repository, MALLOC_ARENA_MAX="1") as server, Client(server.grpc_url, timeout=60) as client:
        for number, each in enumerate(texts):
            client.predict(f"task{number % count}", each, parameters={"max_tokens": 8})
        return pss_mib(server)


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row per comparison."""
    return [_row(*comparison) for comparison in (COMPARISONS[-1:] if quick else COMPARISONS)]


def _row(kind: str, few: int, many: int, target: float, rounds: int) -> dict[str, Any]:
    return {"kind": kind} | compared(lambda count: memory(kind, count), few, many, target, rounds)


def compared(memory: Callable[[int], float], few: int, many: int, target: float, rounds: int) -> dict[str, Any]:
    """What `memory` says of so many tasks, in turns."""
    seen = interleave({"few": lambda _: memory(few), "many": lambda _: memory(many)}, rounds)
    return {
        "few": few,
        "many": many,
        "target": target,
        "ratio": ratio(seen["many"], seen["few"]),
        "few_mib": spread(seen["few"]),
        "many_mib": spread(seen["many"]),
        "rounds": rounds,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A line per comparison."""
    for row in rows:
        print(
            f"{row['many']} {row['kind']} tasks take {text(row['ratio'])} of the memory of {row['few']} "
            f"({against(row['ratio']['median'], row['target'], at_most=True)}): {row['many_mib']['median']:.0f} "
            f"against {row['few_mib']['median']:.0f} MiB; rounds: {row['rounds']}"
        )


if __name__ == "__main__":
    show(run())
