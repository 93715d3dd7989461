"""Generation: tokens per second of many sequences on one language model, without a server.

SmolLM2-135M-Instruct, one core, 16 sequences a step; every prompt is a new one; seconds are those of CPU time. Ways
that take turns: **bare** and **lora**, the backend's engine and runtime with eight tasks without adapters, and with a
LoRA of rank 8 each on queries and values (PEFT's default for this model), **wide** with one on all four of attention's
projections; **static**, transformers' `generate` on batches of 16 in order of arrival, padded, until the longest answer
is done; **continuous**, transformers' continuous batching with as many sequences a step, and up to 144 tokens.

* equal: 16 prompts of 48 tokens, 32 tokens generated for each;
* mixed: 24 prompts of 8 to 128 tokens, 8 to 64 tokens generated.

The backend multiplies through oneDNN, or with weights that MKL has packed, where that is faster than what transformers
leaves to torch. `static, fast products` is `generate` with the same products, so that the rest can be compared too.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.compare import against, interleave, ratio, spread, text
from benchmarks.harness.generating import Generating
from benchmarks.harness.language_model import SEQUENCES, TARGETS, WIDE, Ask, texts, write_adapters, write_repository
from benchmarks.harness.subject import subject

TASKS = 8
OF_BARE, OF_STATIC = 0.90, 0.95
OURS = ("bare", "lora", "wide")
BASELINES = ("static", "static, fast products", "continuous")
CASES = ("equal", "mixed")


def asks(case: str, kind: str, number: int, *, quick: bool) -> list[Ask]:
    """What is asked in a round: the same lengths of every way, other texts in each round."""
    if case == "equal":
        sizes = [(48, 16 if quick else 32)] * SEQUENCES
    else:
        numbers = np.random.default_rng(7)  # about log-uniform, as lengths of requests are
        count = SEQUENCES * 3 // 2
        drawn = zip(numbers.uniform(3, 7, count), numbers.uniform(3, 5 if quick else 6, count), strict=True)
        sizes = [(int(2**prompt), int(2**answer)) for prompt, answer in drawn]
    seed = 1000 * CASES.index(case) + 10 * number
    words = texts([prompt for prompt, _ in sizes], seed)
    return [
        Ask(f"{kind}{place % TASKS}", word, tokens)
        for place, (word, (_, tokens)) in enumerate(zip(words, sizes, strict=True))
    ]


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row per case."""
    rounds = 2 if quick else 3
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        adapters: dict[str, Path | None] = {f"bare{number}": None for number in range(TASKS)}
        for kind, targets in (("lora", TARGETS), ("wide", WIDE)):
            made = write_adapters(Path(folder, kind), TASKS, targets=targets)
            adapters |= {f"{kind}{number}": adapter for number, adapter in enumerate(made)}
        repository = Path(folder, "repository")
        write_repository(repository, adapters)
        ours = stack.enter_context(Generating("ours", repository))
        others = {name: stack.enter_context(Generating(name)) for name in _baselines()}
        ways = dict.fromkeys(OURS, ours) | others

        def measure(case: str, name: str) -> Callable[[int], float]:
            kind = name if name in OURS else "bare"

            def once(number: int) -> float:
                rate = ways[name].per_second(asks(case, kind, number, quick=quick))
                print(f"    {case} {name}: {rate:.1f} tokens/s", flush=True)
                return rate

            return once

        for name in ways:
            measure("equal", name)(99)  # what is allocated on first use
        return [_row(case, interleave({name: measure(case, name) for name in ways}, rounds)) for case in CASES]


def _baselines() -> tuple[str, ...]:
    """In other dtypes torch takes oneDNN by itself."""
    return BASELINES if subject().dtype == "float32" else tuple(each for each in BASELINES if "fast" not in each)


def _row(case: str, seen: Mapping[str, list[float]]) -> dict[str, Any]:
    baselines = [name for name in seen if name not in OURS]
    return {
        "case": case,
        "per_second": {name: spread(rates) for name, rates in seen.items()},
        "of_bare": {name: ratio(seen[name], seen["bare"]) for name in OURS[1:]},
        "of_baseline": {name: ratio(seen["bare"], seen[name]) for name in baselines},
        "lora_of_baseline": {name: ratio(seen["lora"], seen[name]) for name in baselines},
        "rounds": len(seen["bare"]),
        "core": subject().apart.models[0],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A few lines per case."""
    for row in rows:
        rates = ", ".join(f"{name} {value['median']:.0f}" for name, value in row["per_second"].items())
        print(
            f"{row['case']} lengths: eight adapters {text(row['of_bare']['lora'])} of the bare backbone "
            f"({against(row['of_bare']['lora']['median'], OF_BARE)}), wide ones {text(row['of_bare']['wide'])}; "
            f"tokens/s: {rates}; rounds: {row['rounds']}"
        )
        for name, value in row["of_baseline"].items():
            target = OF_STATIC if row["case"] == "equal" else 1.0
            wanted = f" ({against(value['median'], target)})" if name == "static" or row["case"] == "mixed" else ""
            print(f"    bare {text(value, '.2f')} of {name}{wanted}; lora {text(row['lora_of_baseline'][name], '.2f')}")


if __name__ == "__main__":
    show(run())
