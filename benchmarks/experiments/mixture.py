"""Throughput of a mixture of 8 and 256 tokens, relative to each length alone.

If the lengths alone reach rate8 and rate256, a mixture that answers n8 and n256 texts in a time T reaches
(n8/rate8 + n256/rate256) / T of that. The three loads run in turn, closed loop, 64 clients.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.repositories import texts_of_length, write_backbone, write_task
from benchmarks.harness.serving import pin_apart, serving
from benchmarks.load import Generator, Outcome, closed

SHORT, LONG = 8, 256


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """One row: a task for the short texts, one for the long."""
    rounds, seconds = (1, 3.0) if quick else (5, 3.0)
    short, long = texts_of_length(SHORT, 256), texts_of_length(LONG, 256)
    mixed = [text for pair in zip(short, long, strict=True) for text in pair]
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        write_backbone(repository)
        write_task(repository, "short", 0)
        write_task(repository, "long", 1)
        kept, rates = [], []
        with serving(repository) as server, Generator(1) as generator:
            pin_apart(server)

            def load(tasks: list[str], texts: list[str]) -> Outcome:
                return generator.run(closed(server.grpc_url, tasks, texts, seconds=seconds))

            for _ in range(rounds):
                fast, slow = load(["short"], short), load(["long"], long)
                both = load(["short", "long"], mixed)  # requests take tasks and texts in turn, both by parity
                rates.append((fast.per_second, slow.per_second))
                kept.append(
                    both.tasks["short"].per_second / fast.per_second + both.tasks["long"].per_second / slow.per_second
                )
    return [
        {
            "target": 0.9,
            "ratio": statistics.median(kept),
            "ratio_min": min(kept),
            "ratio_max": max(kept),
            "short_per_s": statistics.median(rate for rate, _ in rates),
            "long_per_s": statistics.median(rate for _, rate in rates),
            "rounds": rounds,
        }
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """One line."""
    for row in rows:
        print(
            f"a mixture of {SHORT} and {LONG} tokens keeps {row['ratio']:.3f} of the two run apart (target "
            f"{row['target']}; {row['ratio_min']:.3f} to {row['ratio_max']:.3f} in {row['rounds']} rounds); "
            f"apart {row['short_per_s']:.0f} and {row['long_per_s']:.1f} texts/s"
        )


if __name__ == "__main__":
    show(run())
