"""What the scheduler itself costs: microseconds per request, without a backbone.

Every request passes through all of the scheduler: admit, choose, measure, settle, and its batch's `cost.observe`. The
number of backlogged vFMs stays constant: every request that is served is admitted again. All cells take turns in every
round, so that a busy machine slows all of them, and each figure is the median over the rounds.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

from fmplex_backend.scheduling import POLICIES, CostModel, Scheduler
from fmplex_backend.types import PassShape, Reply, Request, Vfm, Work

BACKLOGGED = (10, 100, 1000)
BMAX = (1, 8, 32)
ROUNDS = 9
REQUESTS = 3200  # per cell and round
PER_VFM = 2  # requests queued at each vFM
TARGET_US = 50.0  # with 100 backlogged vFMs
TARGET_RATIO = 1.5  # 1,000 backlogged vFMs against 100
PAPER_US = 350.0  # arXiv 2606.09643


@dataclass(frozen=True)
class Cell:
    """A scheduler with its backlog, ready to serve."""

    backlogged: int
    bmax: int
    scheduler: Scheduler
    shapes: tuple[PassShape, ...]


def _no_reply(reply: Reply, final: bool) -> None:
    """Nobody waits for it."""


def _cell(policy: str, backlogged: int, bmax: int) -> Cell:
    rng = random.Random(backlogged * 100 + bmax)
    scheduler = POLICIES[policy](CostModel(), max_items=bmax)
    vfms = [Vfm(i, f"task{i}", weight=rng.choice((1.0, 2.0, 4.0)), slo=60.0) for i in range(backlogged)]
    for _ in range(PER_VFM):
        for vfm in vfms:
            length = rng.randint(8, 512)
            request = Request(vfm, {}, (), 0.0, _no_reply)
            request.work = Work.of_row(length)
            request.rows = {(0, rng.randbytes(4 * length), b""): request.work}  # as text encoders do; none is shared
            scheduler.admit(request)
    shapes = tuple(PassShape(bmax * length, length, 2) for length in (64, 128, 256, 512))
    return Cell(backlogged, bmax, scheduler, shapes)


def _serve(cell: Cell, requests: int) -> float:
    """Microseconds per request."""
    scheduler, shapes = cell.scheduler, cell.shapes
    cost = scheduler.cost
    served = batches = 0
    start = perf_counter()
    while served < requests:
        batch = scheduler.choose(0.0)
        shape = shapes[batches & 3]
        elapsed = 2e-3 + 1e-6 * shape.tokens
        scheduler.measure([(request, request.work) for request in batch], elapsed)
        cost.observe(shape, len(batch), elapsed)
        scheduler.settle(batch)
        for request in batch:
            scheduler.admit(request)
        served += len(batch)
        batches += 1
    return (perf_counter() - start) / served * 1e6


def run(*, quick: bool = False, policy: str = "bfq") -> list[dict[str, Any]]:
    """Per Bmax: the microseconds by the number of backlogged vFMs, and what 1,000 take against 100."""
    rounds = 3 if quick else ROUNDS
    cells = [_cell(policy, backlogged, bmax) for bmax in BMAX for backlogged in BACKLOGGED]
    for cell in cells:
        _serve(cell, REQUESTS // 4)
    seen: dict[tuple[int, int], list[float]] = {(cell.bmax, cell.backlogged): [] for cell in cells}
    for _ in range(rounds):
        for cell in cells:
            seen[cell.bmax, cell.backlogged].append(_serve(cell, REQUESTS))
    return [
        {
            "policy": policy,
            "bmax": bmax,
            "us": {str(n): median(seen[bmax, n]) for n in BACKLOGGED},  # per request, by backlogged vFMs
            "ratio": median(b / a for a, b in zip(seen[bmax, 100], seen[bmax, 1000], strict=True)),
            "target_us": TARGET_US,
            "target_ratio": TARGET_RATIO,
            "paper_us": PAPER_US,
            "rounds": rounds,
        }
        for bmax in BMAX
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """A line per Bmax."""
    for row in rows:
        micros = ", ".join(f"{us:.1f} with {n}" for n, us in row["us"].items())
        print(
            f"Bmax {row['bmax']:>2}: microseconds per request by backlogged vFMs: {micros} "
            f"(target under {row['target_us']:.0f} with 100; the paper says {row['paper_us']:.0f}, on its machine); "
            f"1,000 take {row['ratio']:.2f} of 100 (target {row['target_ratio']}; {row['rounds']} rounds)"
        )


if __name__ == "__main__":
    show(run())
