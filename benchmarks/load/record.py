"""What a run records, and its summary: HDR histograms of microseconds, three significant digits."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from hdrh.histogram import HdrHistogram

from benchmarks.load.plan import Outcome, Plan, Tally

LONGEST_US = 10 * 60 * 1_000_000


class TaskRecord:
    """Counts and latencies of one task."""

    def __init__(self) -> None:
        self.offered = 0  # due in the window
        self.good = 0  # of those offered: answered without error
        self.within_slo = 0  # of those offered
        self.answered = 0  # answers without error that arrived in the window
        self.seconds: list[float] = []  # latency of each good one
        self.items = 0  # batch sizes of the good ones, summed


class Record:
    """What happens in the measurement window from `begin` to `end` (seconds of perf_counter)."""

    def __init__(self, begin: float, end: float, *, timeline: bool = False) -> None:
        self.begin, self.end = begin, end
        self.timeline: list[tuple[float, float]] | None = [] if timeline else None  # see `Outcome`
        self.first = self.after = 0.0  # when the first answer in the window came, and the first one after it
        self.tasks: dict[str, TaskRecord] = {}
        self.errors: Counter[str] = Counter()
        self.late: list[float] = []
        self.compute_us: dict[int, list[int]] = defaultdict(list)  # by batch size
        self.cpu_s = 0.0

    def _in_window(self, moment: float) -> bool:
        return self.begin <= moment < self.end

    def sent(self, due: float, now: float) -> None:
        """A request of an open loop was sent."""
        if self._in_window(due):
            self.late.append(now - due)

    def offer(self, task: str, due: float) -> None:
        """A request is due."""
        record = self.tasks.get(task) or self.tasks.setdefault(task, TaskRecord())
        record.offered += self._in_window(due)

    def fail(self, task: str, due: float, why: str) -> None:
        """A request was answered with an error."""
        if self._in_window(due):
            self.errors[why] += 1
            self._enter(due, math.inf)

    def answer(self, task: str, due: float, done: float, slo_ms: float, receipt: tuple[int, int]) -> None:
        """A request was answered; the receipt is compute_us and batch_items."""
        compute_us, items = receipt
        record = self.tasks[task]
        record.answered += self._in_window(done)
        if done >= self.end:
            self.after = self.after or done
        elif done >= self.begin:
            self.first = self.first or done
        if self._in_window(due):
            self._enter(due, done - due)
            record.good += 1
            record.seconds.append(done - due)
            record.items += items
            self.compute_us[items].append(compute_us)
            record.within_slo += not slo_ms or (done - due) * 1e3 <= slo_ms

    def _enter(self, due: float, seconds: float) -> None:
        if self.timeline is not None:
            self.timeline.append((due - self.begin, seconds))

    @property
    def span(self) -> float:
        """Seconds from the first answer in the window to the first one after it: what rates are taken over.

        Answers come a batch at a time. Between two arbitrary moments there is up to a batch more or less than was
        served, a tenth where a round holds ten batches; from answer to answer there is not.
        """
        return (self.after or self.end) - (self.first or self.begin)


def summary(record: Record, plan: Plan) -> Outcome:
    """The outcome of a run."""
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
        timeline=record.timeline or [],
        began=time.time() - time.perf_counter() + record.begin,
        ceiling=1 / per_request if per_request else 0.0,
    )


def _histogram(seconds: Iterable[float]) -> HdrHistogram:
    histogram = HdrHistogram(1, LONGEST_US, 3)
    for each in seconds:
        histogram.record_value(max(1, min(LONGEST_US, round(each * 1e6))))
    return histogram


def percentile_ms(seconds: Iterable[float], percentile: float) -> float:
    """A percentile of latencies in seconds, in ms."""
    return float(_histogram(seconds).get_value_at_percentile(percentile)) / 1e3


def _tally(records: Iterable[TaskRecord], seconds: float) -> dict[str, Any]:
    records = list(records)
    seconds_each = [each for record in records for each in record.seconds]
    histogram = _histogram(seconds_each)
    good, offered = sum(record.good for record in records), sum(record.offered for record in records)
    answered = sum(record.answered for record in records)

    def or_infinite(milliseconds: float) -> float:
        return milliseconds if good or not offered else math.inf  # no answer must not look like no latency

    return {
        "offered": offered,
        "answered": answered,
        "failures": offered - good,
        "within_slo": sum(record.within_slo for record in records),
        "per_second": answered / seconds,
        # the histogram's own mean takes 40 ms
        "mean_ms": or_infinite(1e3 * statistics.fmean(seconds_each) if good else 0.0),
        "p50_ms": or_infinite(histogram.get_value_at_percentile(50) / 1e3),
        "p95_ms": or_infinite(histogram.get_value_at_percentile(95) / 1e3),
        "p99_ms": or_infinite(histogram.get_value_at_percentile(99) / 1e3),
        "max_ms": histogram.get_max_value() / 1e3 if good else 0.0,
        "batch_items": sum(record.items for record in records) / good if good else 0.0,
    }
