"""What sharing costs: ten tasks through the server against the bare backbone on the same texts.

Ten LoRA tasks and ten head-only tasks are on one server; each kind is measured in turn with the bare loop, which runs
on the backbone's core while the server is idle. Closed loop, 64 clients over the tasks in turn, batch size 32; the
backbone's process on one core, Triton and the clients on the other.
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.harness.arms import Arm, Task, lora_tasks, shared
from benchmarks.harness.bare import Bare
from benchmarks.harness.compare import interleave
from benchmarks.harness.repositories import texts_of_length
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Outcome, closed

TASKS = 10
TARGETS = {("lora", 64): 0.93, ("head", 64): 0.97, ("lora", 16): 0.82, ("head", 16): 0.87}
# A pass that is over sooner leaves less time for what is done beside it.
TARGETS_IN = {"bfloat16": TARGETS | {("lora", 16): 0.75}}
SECONDS = {64: 4.0, 16: 2.0}


def measure(arm: Arm, kinds: dict[str, list[str]], tokens: int, generator: Generator, rounds: int) -> list[Any]:
    """Interleaved rounds with texts of one length: a row per kind of tasks."""
    texts, seconds = texts_of_length(tokens, 512), SECONDS[tokens]

    def served(names: list[str]) -> Any:
        return lambda _: generator.run(closed(arm.url, names, texts, seconds=seconds))

    with Bare(texts, 32, subject().apart.models[0]) as bare:
        arms = {kind: served(names) for kind, names in kinds.items()}
        seen = interleave(arms | {"bare": lambda _: bare.per_second(seconds)}, rounds)
    limit = seen.pop("bare")
    return [_row(kind, tokens, outcomes, limit) for kind, outcomes in seen.items()]


def _row(kind: str, tokens: int, outcomes: list[Outcome], limit: list[float]) -> dict[str, Any]:
    target = TARGETS_IN.get(subject().dtype, TARGETS)[kind, tokens]
    return {"kind": kind, "tokens": tokens, "target": target} | of_bare(outcomes, limit)


def of_bare(outcomes: list[Outcome], limit: list[float]) -> dict[str, Any]:
    """Rounds through the server against those of the bare loop; raises where a request failed."""
    if failures := sum(each.failures for each in outcomes):
        raise RuntimeError(f"{failures} requests failed: {[each.errors for each in outcomes]}")
    rates = [each.per_second for each in outcomes]
    ratios = [a / b for a, b in zip(rates, limit, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "served_per_s": statistics.median(rates),
        "bare_per_s": statistics.median(limit),
        "batch_items": statistics.mean(each.batch_items for each in outcomes),
        "rounds": len(limit),
    }


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row per kind and length."""
    with lora_tasks(TASKS) as adapted:
        plain = [Task(f"plain{number}") for number in range(TASKS)]
        kinds = {"lora": [task.name for task in adapted], "head": [task.name for task in plain]}
        with shared([*adapted, *plain]) as arm, Generator(subject().apart.generator) as generator:
            rows = []
            for tokens in (16,) if quick else SECONDS:
                rows += measure(arm, kinds, tokens, generator, 2 if quick else 5)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """A line per row."""
    for row in rows:
        print(
            f"{TASKS} {row['kind']:4} tasks, {row['tokens']:3} tokens: {row['ratio']:.3f} of bare "
            f"(target {row['target']}; {row['ratio_min']:.3f} to {row['ratio_max']:.3f} in {row['rounds']} rounds); "
            f"{row['served_per_s']:.1f} against {row['bare_per_s']:.1f} texts/s, batches of {row['batch_items']:.1f}"
        )


if __name__ == "__main__":
    show(run())
