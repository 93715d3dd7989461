"""What language models count beside all families, by task. Imports no torch.

The engine thread writes plain numbers, the metrics thread reads them. A histogram is published as counters with
Prometheus' names, of buckets, sum and count, so that `histogram_quantile` reads it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate
from types import MappingProxyType

from fmplex_backend.types import Metric, Reading

FIRST, NEXT = "fmplex_time_to_first_token_seconds", "fmplex_time_per_output_token_seconds"
FIRST_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds
NEXT_BOUNDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


def _histogram(name: str, text: str) -> dict[str, Metric]:
    parts = {"bucket": f"{text}: how many took up to `le`", "sum": f"{text}: summed", "count": f"{text}: how many"}
    return {f"{name}_{part}": Metric("counter", described) for part, described in parts.items()}


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "fmplex_prompt_tokens_total": Metric("counter", "Tokens of prompts whose answers have begun"),
        "fmplex_generated_tokens_total": Metric("counter", "Tokens of answers"),
        "fmplex_prefix_tokens_total": Metric("counter", "Tokens that a sequence found in memory when it began"),
        "fmplex_preemptions_total": Metric("counter", "Sequences that lost their blocks, and are computed again"),
        "fmplex_sequences_running": Metric("gauge", "Sequences of a vFM that have keys and values in memory"),
        "fmplex_sequences_waiting": Metric("gauge", "Sequences of a vFM that wait to begin, or to begin again"),
        "fmplex_kv_blocks": Metric("gauge", "Blocks of the memory for keys and values that a vFM's sequences hold"),
        "fmplex_backbone_kv_blocks": Metric("gauge", "Blocks that there are"),
        "fmplex_backbone_kv_blocks_free": Metric("gauge", "Blocks that nobody holds, those with a prefix included"),
        "fmplex_backbone_kv_blocks_prefix": Metric("gauge", "Of these, blocks that keep a prefix to be found"),
        **_histogram(FIRST, "Seconds from a request's arrival to its first token"),
        **_histogram(NEXT, "Seconds from a token of an answer to the next one"),
    }
)


class Histogram:
    """Observations by size."""

    def __init__(self, name: str, bounds: tuple[float, ...]) -> None:
        self.name, self.bounds = name, bounds
        self.sum = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float) -> None:
        """One more."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def readings(self) -> Iterator[Reading]:
        """As Prometheus has it: a bucket counts all that are no larger."""
        totals = list(accumulate(self._counts))
        for bound, total in zip((*map(str, self.bounds), "+Inf"), totals, strict=True):
            yield Reading(f"{self.name}_bucket", total, (("le", bound),))
        yield Reading(f"{self.name}_sum", self.sum)
        yield Reading(f"{self.name}_count", totals[-1])


class TaskCounts:
    """Those of one task."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.prefix_tokens = 0
        self.preemptions = 0
        self.waiting = 0  # when a step began
        self.first_token = Histogram(FIRST, FIRST_BOUNDS)
        self.next_token = Histogram(NEXT, NEXT_BOUNDS)

    def generated(self, at: float, since: float, *, first: bool) -> None:
        """A token was made, so long after the one before it, or after its request's arrival."""
        self.generated_tokens += 1
        (self.first_token if first else self.next_token).observe(at - since)

    def readings(self, running: int, blocks: int, depth: int) -> Iterator[Reading]:
        """Of a task with so many running sequences, their blocks, and queued requests."""
        yield Reading("fmplex_prompt_tokens_total", self.prompt_tokens)
        yield Reading("fmplex_generated_tokens_total", self.generated_tokens)
        yield Reading("fmplex_prefix_tokens_total", self.prefix_tokens)
        yield Reading("fmplex_preemptions_total", self.preemptions)
        yield Reading("fmplex_sequences_running", running)
        yield Reading("fmplex_sequences_waiting", min(self.waiting, depth))  # the last step may be long ago
        yield Reading("fmplex_kv_blocks", blocks)
        yield from self.first_token.readings()
        yield from self.next_token.readings()
