"""What a run noted, and its figures: HDR histograms, microseconds, three digits."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from hdrh.histogram import HdrHistogram

from benchmarks.load.plan import Outcome, Plan, Tally

LONGEST_US = 10 * 60 * 1_000_000


class TaskRecord:
    """One task's."""

    def __init__(self) -> None:
        self.offered = self.answered = self.failures = self.within_slo = 0
        self.good = 0  # of those offered
        self.seconds: list[float] = []
        self.items = 0


class Record:
    """Counts between `begin` and `end`."""

    def __init__(self, begin: float, end: float) -> None:
        self.begin, self.end = begin, end
        self.first = self.after = 0.0  # when the first answer came in the counted time, and the first after it
        self.tasks: dict[str, TaskRecord] = {}
        self.errors: Counter[str] = Counter()
        self.late: list[float] = []
        self.compute_us: dict[int, list[int]] = defaultdict(list)  # by batch size
        self.cpu_s = 0.0

    def _counted(self, moment: float) -> bool:
        return self.begin <= moment < self.end

    def sent(self, meant: float, now: float) -> None:
        """An open loop's request goes out."""
        if self._counted(meant):
            self.late.append(now - meant)

    def offer(self, task: str, meant: float) -> None:
        """A request is meant to be sent."""
        record = self.tasks.get(task) or self.tasks.setdefault(task, TaskRecord())
        record.offered += self._counted(meant)

    def fail(self, task: str, meant: float, why: str) -> None:
        """It was answered with an error."""
        if self._counted(meant):
            self.errors[why] += 1

    def answer(self, task: str, meant: float, done: float, slo_ms: float, receipt: tuple[int, int]) -> None:
        """It was answered; the receipt is microseconds in the backbone, and rows of its batch."""
        compute_us, items = receipt
        record = self.tasks[task]
        record.answered += self._counted(done)
        if done >= self.end:
            self.after = self.after or done
        elif done >= self.begin:
            self.first = self.first or done
        if self._counted(meant):
            record.good += 1
            record.seconds.append(done - meant)
            record.items += items
            self.compute_us[items].append(compute_us)
            record.within_slo += not slo_ms or (done - meant) * 1e3 <= slo_ms

    @property
    def span(self) -> float:
        """Seconds between the two first answers.

        Answers come a batch at a time. Counted between two moments of one's own choosing they are a batch more or less
        than what was served, which is a tenth where a round holds ten; between two answers they are not.
        """
        return (self.after or self.end) - (self.first or self.begin)


def summary(record: Record, plan: Plan) -> Outcome:
    """The figures of a run."""
    whole = _tally(record.tasks.values(), record.span)
    answered = whole["answered"]
    per_request = record.cpu_s / answered if answered else math.inf
    return Outcome(
        **whole,
        tasks={name: Tally(**_tally([task], record.span)) for name, task in record.tasks.items()},
        errors=dict(record.errors),
        compute_ms={str(items): statistics.fmean(seen) / 1e3 for items, seen in sorted(record.compute_us.items())},
        late_p99_ms=_histogram(record.late).get_value_at_percentile(99) / 1e3,
        cpu=record.cpu_s / plan.seconds,
        ceiling=1 / per_request if per_request else 0.0,
    )


def _histogram(seconds: Iterable[float]) -> HdrHistogram:
    histogram = HdrHistogram(1, LONGEST_US, 3)
    for each in seconds:
        histogram.record_value(max(1, min(LONGEST_US, round(each * 1e6))))
    return histogram


def percentile_ms(seconds: Iterable[float], percentile: float) -> float:
    """Of seconds, in ms."""
    return float(_histogram(seconds).get_value_at_percentile(percentile)) / 1e3


def _tally(records: Iterable[TaskRecord], seconds: float) -> dict[str, Any]:
    records = list(records)
    seconds_each = [each for record in records for each in record.seconds]
    histogram = _histogram(seconds_each)
    good, offered = sum(record.good for record in records), sum(record.offered for record in records)
    answered = sum(record.answered for record in records)

    def late(milliseconds: float) -> float:
        return milliseconds if good or not offered else math.inf  # nothing came back: no latency would be the best one

    return {
        "offered": offered,
        "answered": answered,
        "failures": offered - good,
        "within_slo": sum(record.within_slo for record in records),
        "per_second": answered / seconds,
        "mean_ms": late(1e3 * statistics.fmean(seconds_each) if good else 0.0),  # the histogram's takes 40 ms
        "p50_ms": late(histogram.get_value_at_percentile(50) / 1e3),
        "p95_ms": late(histogram.get_value_at_percentile(95) / 1e3),
        "p99_ms": late(histogram.get_value_at_percentile(99) / 1e3),
        "max_ms": histogram.get_max_value() / 1e3 if good else 0.0,
        "batch_items": sum(record.items for record in records) / good if good else 0.0,
    }
