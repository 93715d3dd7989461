"""Groups: ten tasks that are asked the same texts at once, against ten tasks with a text each.

* separate: a request goes to one task after the other, each with a text of its own;
* same: each text goes to all ten tasks at once, and a client sends its next one when all have answered;
* group: each text goes to the group of the ten tasks, one request for ten answers;
* unshared: the same load on a server whose backbone has `share_rows` off.

Ten head-only tasks share all rows of a text, ten LoRA tasks none: their rates say what looking for equal rows, and
gathering, cost.
Rates are of answers: a text that ten tasks read counts ten times. Closed loop, 64 clients, batch size 32; the
backbones' processes on one core, Triton and the clients on the other.
"""

from __future__ import annotations

import contextlib
import statistics
from typing import Any

from benchmarks.harness.arms import Arm, Task, lora_tasks, shared
from benchmarks.harness.compare import against, interleave, pace, ratio, spread, text
from benchmarks.harness.repositories import texts_of_length
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Outcome, Plan, Stream, closed
from benchmarks.load.plan import OUTPUTS

TASKS = 10
CLIENTS = 64
TARGET = 5.0  # head-only tasks, 64 tokens: the rate of the group, of that with separate texts
GROUP_TARGET = 1.0  # LoRA tasks: the rate of the group, of that with separate texts
LORA_TARGET = 0.97  # LoRA tasks: the rate with the same texts, of that with `share_rows` off, whose rounds vary by 3%
SECONDS = {64: 3.0, 16: 2.0}
ROUNDS = 4  # at most: it runs sixteen arms


def together(arm: Arm, names: list[str], texts: list[str], seconds: float, warmup: float) -> Plan:
    """Every client sends its text to all tasks at once."""
    return Plan(arm.url, [Stream(names, texts, CLIENTS, together=True)], seconds, warmup, usage=True)


def grouped(arm: Arm, group: str, names: list[str], texts: list[str], seconds: float, warmup: float) -> Plan:
    """Every client sends its text to the group."""
    outputs = [f"{name}.{output}" for name in names for output in OUTPUTS]
    return Plan(arm.url, [Stream([group], texts, CLIENTS, outputs=outputs)], seconds, warmup, usage=True)


def measure(
    arms: dict[str, Arm], group: str, names: list[str], tokens: int, generator: Generator, *, quick: bool
) -> dict[str, list[Outcome]]:
    """Interleaved rounds with texts of one length."""
    rounds, _, warmup = pace(quick=quick)
    rounds, texts, seconds = min(rounds, ROUNDS), texts_of_length(tokens, 512), SECONDS[tokens]
    plans = {
        "separate": closed(arms["sharing"].url, names, texts, clients=CLIENTS, seconds=seconds, warmup=warmup),
        "same": together(arms["sharing"], names, texts, seconds, warmup),
        "group": grouped(arms["sharing"], group, names, texts, seconds, warmup),
        "unshared": together(arms["not sharing"], names, texts, seconds, warmup),
    }

    def sent(plan: Plan) -> Any:
        return lambda _: generator.run(plan)

    return interleave({name: sent(plan) for name, plan in plans.items()}, rounds)


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row per kind of tasks and length."""
    with lora_tasks(TASKS) as adapted, contextlib.ExitStack() as stack:
        plain = [Task(f"plain{number}") for number in range(TASKS)]
        arms = {
            "sharing": stack.enter_context(shared([*adapted, *plain], groups={"head": plain, "lora": adapted})),
            "not sharing": stack.enter_context(shared([*adapted, *plain], share_rows="false")),
        }
        generator = stack.enter_context(Generator(subject().apart.generator))
        kinds = {"head": [task.name for task in plain], "lora": [task.name for task in adapted]}
        return [
            _row(kind, tokens, measure(arms, kind, names, tokens, generator, quick=quick))
            for tokens in ((16,) if quick else SECONDS)
            for kind, names in kinds.items()
        ]


def _row(kind: str, tokens: int, seen: dict[str, list[Outcome]]) -> dict[str, Any]:
    if failures := sum(each.failures for outcomes in seen.values() for each in outcomes):
        raise RuntimeError(f"{failures} requests failed")
    answers = {name: TASKS if name == "group" else 1 for name in seen}  # of a request
    rates = {name: [answers[name] * each.per_second for each in outcomes] for name, outcomes in seen.items()}
    return {
        "kind": kind,
        "tokens": tokens,
        "per_second": {name: spread(each) for name, each in rates.items()},
        "mean_ms": {name: statistics.median(each.mean_ms for each in outcomes) for name, outcomes in seen.items()},
        "batch_items": {
            name: statistics.mean(each.batch_items for each in outcomes) for name, outcomes in seen.items()
        },
        "of_separate": ratio(rates["group"], rates["separate"]),
        "same_of_separate": ratio(rates["same"], rates["separate"]),
        "of_unshared": ratio(rates["same"], rates["unshared"]),
        "ceiling": statistics.median(each.ceiling for each in seen["same"]),
        "rounds": len(rates["same"]),
        "cores": str(subject().apart),
    }


def _targets(row: dict[str, Any]) -> tuple[str, str]:
    """What is asked of the ratios of the group to separate texts, and of the same texts to unshared rows."""
    if row["kind"] == "lora":
        group = f" ({against(row['of_separate']['median'], GROUP_TARGET)})"
        return group, f" ({against(row['of_unshared']['median'], LORA_TARGET)})"
    return (f" ({against(row['of_separate']['median'], TARGET)})" if row["tokens"] == 64 else ""), ""


def show(rows: list[dict[str, Any]]) -> None:
    """A line per row."""
    for row in rows:
        separate, unshared = _targets(row)
        rates = ", ".join(f"{name} {value['median']:.0f}" for name, value in row["per_second"].items())
        print(
            f"{TASKS} {row['kind']} tasks, {row['tokens']} tokens: as a group {text(row['of_separate'], '.2f')} of "
            f"separate texts{separate}; the same texts task by task {text(row['same_of_separate'], '.2f')} of them and "
            f"{text(row['of_unshared'], '.2f')} of unshared rows{unshared}; "
            f"answers/s {rates}; batches of {row['batch_items']['group']:.0f}; "
            f"the generator's ceiling {row['ceiling']:.0f}"
        )


if __name__ == "__main__":
    show(run())
