"""Dtypes: what a backbone in bfloat16 brings, ten LoRA tasks through the server in each dtype on the same texts.

Two servers, one in float32 and one in bfloat16, take turns; closed loop, 64 clients over the tasks in turn, batch size
32; model, Triton and clients all on the same cores, as many threads as these. The bare loop in each dtype, on one core,
shows what the processor itself gains, which the served gain cannot exceed by much.
"""

from __future__ import annotations

import contextlib
from typing import Any

from benchmarks.harness.arms import Arm, lora_tasks, shared
from benchmarks.harness.bare import Bare
from benchmarks.harness.compare import against, interleave, ratio, spread, text
from benchmarks.harness.repositories import texts_of_length
from benchmarks.harness.subject import subject, subject_in
from benchmarks.load import Generator, closed

TASKS = 10
DTYPES = ("float32", "bfloat16")
TARGETS = {64: 3.0, 16: 2.7}
SECONDS = {64: 4.0, 16: 2.0}


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row per length."""
    cores = subject().spread
    with contextlib.ExitStack() as stack:
        tasks = stack.enter_context(lora_tasks(TASKS))
        names = [task.name for task in tasks]
        arms: dict[str, Arm] = {}
        for dtype in DTYPES:
            served = shared(tasks, cores=cores, threads=len(cores.models), name=dtype, dtype=dtype)
            arms[dtype] = stack.enter_context(served)
        generator = stack.enter_context(Generator())
        return [_row(tokens, arms, names, generator, 2 if quick else 5) for tokens in ((16,) if quick else SECONDS)]


def _row(tokens: int, arms: dict[str, Arm], names: list[str], generator: Generator, rounds: int) -> dict[str, Any]:
    texts, seconds = texts_of_length(tokens, 512), SECONDS[tokens]

    def served(arm: Arm) -> Any:
        return lambda _: generator.run(closed(arm.url, names, texts, seconds=seconds))

    with contextlib.ExitStack() as stack:
        alone: dict[str, Any] = {}
        for dtype in DTYPES:
            with subject_in(dtype):
                bare = stack.enter_context(Bare(texts, subject().max_batch, subject().apart.models[0]))
            alone[f"bare {dtype}"] = lambda _, bare=bare: bare.per_second(seconds / 2)
        seen = interleave({dtype: served(arm) for dtype, arm in arms.items()} | alone, rounds)
    rates = {dtype: [each.per_second for each in seen[dtype]] for dtype in DTYPES}
    return {
        "tokens": tokens,
        "target": TARGETS[tokens],
        "gain": ratio(rates["bfloat16"], rates["float32"]),
        "bare_gain": ratio(seen["bare bfloat16"], seen["bare float32"]),
        "served_per_s": {dtype: spread(rates[dtype]) for dtype in DTYPES},
        "bare_per_s": {dtype: spread(seen[f"bare {dtype}"]) for dtype in DTYPES},
        "failures": sum(each.failures for dtype in DTYPES for each in seen[dtype]),
        "cores": str(subject().spread),
        "rounds": rounds,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A line per length."""
    for row in rows:
        served, bare = (
            " against ".join(f"{row[kind][dtype]['median']:.1f}" for dtype in reversed(DTYPES))
            for kind in ("served_per_s", "bare_per_s")
        )
        print(
            f"{TASKS} lora tasks, {row['tokens']:3} tokens: bfloat16 serves {text(row['gain'], '.2f')} times the texts "
            f"of float32 ({against(row['gain']['median'], row['target'])}), {served} texts/s; bare "
            f"{text(row['bare_gain'], '.2f')} times, {bare} texts/s on one core; {row['failures']} failed"
        )


if __name__ == "__main__":
    show(run())
