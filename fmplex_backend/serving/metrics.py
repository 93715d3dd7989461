"""Publishes the counts of all threads on Triton's /metrics, from a thread of its own.

Setting a Triton metric takes about 120 us of inter-process communication, so only what has changed is set, by default
about once a second, and at most a twentieth of the time is spent on it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from fmplex_backend.printable import printable
from fmplex_backend.server_variables import METRICS_S
from fmplex_backend.serving.candidates import NOTHING, Candidate
from fmplex_backend.serving.service import Service
from fmplex_backend.serving.table import Group
from fmplex_backend.types import Vfm

log = logging.getLogger("fmplex")

PERIOD_S = 1.0
PAUSE_RATIO = 20  # a pause is at least so many times as long as the publishing before it
Labels = tuple[tuple[str, str], ...]


class Sample(NamedTuple):
    """The present value of one metric."""

    family: str
    labels: Labels
    value: float


FAMILIES: dict[str, tuple[str, str]] = {  # those of every family of models; a runtime's own beside them
    "fmplex_requests_total": ("counter", "Requests of a vFM that went through the backbone"),
    "fmplex_items_total": ("counter", "Items (rows) of these requests"),
    "fmplex_tokens_total": ("counter", "Tokens of these items; those of a shared one are divided among its tasks"),
    "fmplex_rows_shared_total": ("counter", "Of these items, those that ran once for several that asked for the same"),
    "fmplex_group_requests_total": ("counter", "Requests of a group, each of which is one of every task in it too"),
    "fmplex_failures_total": ("counter", "Requests answered with an error, by reason"),
    "fmplex_queue_depth": ("gauge", "Requests of a vFM that wait"),
    "fmplex_queue_bytes": ("gauge", "Bytes of the requests of a vFM that are not finished"),
    "fmplex_queue_seconds_total": ("counter", "Time the requests of a vFM waited, summed"),
    "fmplex_compute_seconds_total": ("counter", "Time from being scheduled to being finished, summed over requests"),
    "fmplex_service_seconds_total": ("counter", "Backbone time charged to a vFM"),
    "fmplex_preparation_seconds_total": ("counter", "Time of preparing its requests charged to a vFM"),
    "fmplex_deadline_misses_total": ("counter", "Requests finished after their deadline"),
    "fmplex_cache_hits_total": ("counter", "Requests of a vFM that had a kept answer, and did not go through"),
    "fmplex_cache_misses_total": ("counter", "Requests of a vFM whose task says cache that had none"),
    "fmplex_weight": ("gauge", "The weight of a vFM"),
    "fmplex_shadow_rows_total": ("counter", "Rows of a shadow's copies by outcome: agreed or disagreed"),
    "fmplex_shadow_copies_total": ("counter", "Requests of a shadowed task by outcome: compared, failed or dropped"),
    "fmplex_backbone_batches_total": ("counter", "Batches that a backbone ran"),
    "fmplex_backbone_passes_total": ("counter", "Passes over the backbone; a batch of mixed lengths takes several"),
    "fmplex_backbone_items_total": ("counter", "Items in these batches; divided by batches: the mean batch size"),
    "fmplex_backbone_rows_saved_total": ("counter", "Of these items, those that did not run: the same one did"),
    "fmplex_backbone_busy_seconds_total": ("counter", "Time the backbone was running passes"),
    "fmplex_backbone_broken_passes_total": (
        "counter",
        "Passes that raised; their requests ran again, one by one",
    ),
    "fmplex_backbone_kept_answers": ("gauge", "Answers that are kept of tasks that say cache, also of former versions"),
    "fmplex_backbone_kept_bytes": ("gauge", "Bytes that they take"),
    "fmplex_backbone_vfms": ("gauge", "vFMs on a backbone"),
    "fmplex_backbone_adapters": ("gauge", "vFMs with an adapter"),
}


def samples(service: Service) -> Iterator[Sample]:
    """All metrics of a backbone and its tasks, as they are now."""
    backbone = (("backbone", printable(service.name)),)
    table = dict(service.loader.table)
    vfms = [entry for entry in table.values() if isinstance(entry, Vfm)]
    counts = service.engine.counts
    yield Sample("fmplex_backbone_batches_total", backbone, counts.batches)
    yield Sample("fmplex_backbone_passes_total", backbone, counts.passes)
    yield Sample("fmplex_backbone_items_total", backbone, counts.items)
    yield Sample("fmplex_backbone_rows_saved_total", backbone, counts.rows_saved)
    yield Sample("fmplex_backbone_busy_seconds_total", backbone, counts.busy_s)
    yield Sample("fmplex_backbone_broken_passes_total", backbone, counts.broken_passes)
    yield Sample("fmplex_backbone_kept_answers", backbone, service.answers.answers)
    yield Sample("fmplex_backbone_kept_bytes", backbone, service.answers.bytes)
    yield Sample("fmplex_backbone_vfms", backbone, len(vfms))
    yield Sample("fmplex_backbone_adapters", backbone, sum(vfm.adapted for vfm in vfms))
    yield from _of_runtime(service, backbone, None)
    for reason, count in list(service.intake.counts.failures.items()):
        yield Sample("fmplex_failures_total", (*backbone, ("task", ""), ("reason", reason)), count)
    for tag, entry in table.items():
        labels = (*backbone, ("task", printable(entry.name)), ("vfm", str(tag)))
        if isinstance(entry, Vfm):
            yield from _of_vfm(labels, entry)
            yield from _of_runtime(service, labels, entry)
            for each in service.loader.candidates.beside.get(entry, NOTHING).every:
                yield from _of_candidate(service, labels, each)
            continue
        if isinstance(entry, Group):
            yield Sample("fmplex_group_requests_total", labels, entry.counts.requests)
        yield from _failures(labels, entry.counts.failures)


def _of_candidate(service: Service, labels: Labels, candidate: Candidate) -> Iterator[Sample]:
    """A canary's are those of any vFM. A shadow's copies are no requests, but what they are charged is the task's."""
    vfm, compared = candidate.vfm, candidate.compared
    labels = (*labels, ("role", candidate.spec.role), ("version", str(candidate.spec.number)))
    if vfm is None or vfm.refused is not None:
        return
    if candidate.spec.role == "canary":
        yield from _of_vfm(labels, vfm)
        yield from _of_runtime(service, labels, vfm)
        return
    yield Sample("fmplex_service_seconds_total", labels, vfm.service)
    yield Sample("fmplex_preparation_seconds_total", labels, vfm.preparation_s)
    rows = {"agreed": compared.agreed, "disagreed": compared.items - compared.agreed}
    failed = sum(list(compared.failures.values()))
    copies = {"compared": compared.requests, "failed": failed, "dropped": compared.dropped}
    for family, by_outcome in (("fmplex_shadow_rows_total", rows), ("fmplex_shadow_copies_total", copies)):
        for outcome, value in by_outcome.items():
            yield Sample(family, (*labels, ("outcome", outcome)), value)


def _of_vfm(labels: Labels, vfm: Vfm) -> Iterator[Sample]:
    counts = vfm.engine
    yield Sample("fmplex_requests_total", labels, counts.requests)
    yield Sample("fmplex_items_total", labels, counts.items)
    yield Sample("fmplex_tokens_total", labels, counts.tokens)
    yield Sample("fmplex_rows_shared_total", labels, counts.shared)
    yield Sample("fmplex_queue_depth", labels, vfm.depth)
    yield Sample("fmplex_queue_bytes", labels, vfm.queue_bytes)
    yield Sample("fmplex_queue_seconds_total", labels, counts.queue_s)
    yield Sample("fmplex_compute_seconds_total", labels, counts.compute_s)
    yield Sample("fmplex_service_seconds_total", labels, vfm.service)
    yield Sample("fmplex_preparation_seconds_total", labels, vfm.preparation_s)
    yield Sample("fmplex_deadline_misses_total", labels, counts.misses)
    yield Sample("fmplex_cache_hits_total", labels, vfm.intake.cache_hits)
    yield Sample("fmplex_cache_misses_total", labels, vfm.intake.cache_misses)
    yield Sample("fmplex_weight", labels, vfm.weight)
    yield from _failures(labels, vfm.failures())


def _of_runtime(service: Service, labels: Labels, vfm: Vfm | None) -> Iterator[Sample]:
    for metric, value, more in service.runtime.readings(vfm):
        yield Sample(metric, (*labels, *more), value)


def _failures(labels: Labels, failures: dict[str, int]) -> Iterator[Sample]:
    for reason, count in list(failures.items()):
        yield Sample("fmplex_failures_total", (*labels, ("reason", reason)), count)


def period_of(value: str | None) -> float:
    """Seconds, of the server's FMPLEX_METRICS_S; raises ValueError."""
    try:
        period_s = float(PERIOD_S if value is None else value)
    except ValueError:
        period_s = math.nan
    if not 0 < period_s < math.inf:
        raise ValueError(f"{METRICS_S} is {value!r}. Set it to seconds above 0, or to nothing")
    return period_s


class Publisher:
    """Keeps Triton's metrics in step with `samples`.

    Args:
        metric_family: `pb_utils.MetricFamily`.
        period_s: from one publication to the next.
    """

    def __init__(self, service: Service, metric_family: Any, period_s: float = PERIOD_S) -> None:
        self.service, self.period_s = service, period_s
        self._kinds = {"counter": metric_family.COUNTER, "gauge": metric_family.GAUGE}
        self._described: dict[str, tuple[str, str]] = {**FAMILIES, **service.runtime.metrics}
        self._families = {
            name: metric_family(name=name, description=text, kind=self._kinds[kind])
            for name, (kind, text) in self._described.items()
        }
        self._metrics: dict[tuple[str, Labels], Any] = {}
        self._published: dict[tuple[str, Labels], float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fmplex-metrics", daemon=True)

    def start(self) -> None:
        """Publish again and again until stopped."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and drop the metrics, then their families.

        Each tells Triton when it is deleted. One that is deleted after `finalize` has returned ends the process with a
        segmentation fault.
        """
        self._stop.set()
        self._thread.join()
        self._metrics.clear()
        self._families.clear()

    def publish(self) -> None:
        """One round: set what has changed, drop what is gone."""
        current = {(sample.family, sample.labels): float(sample.value) for sample in samples(self.service)}
        for key in self._published.keys() - current.keys():
            self._metrics.pop(key, None)
            del self._published[key]
        for key, value in current.items():
            if self._published.get(key) != value:
                try:
                    self._publish(key, value)
                except Exception:  # e.g. a label that the server does not take: the other tasks' metrics go on
                    log.exception("publishing %s of %s", *key)
                self._published[key] = value

    def _publish(self, key: tuple[str, Labels], value: float) -> None:
        family, labels = key
        before = self._published.get(key, 0.0)
        if key not in self._metrics:
            self._metrics[key] = self._families[family].Metric(labels=dict(labels))
        if self._described[family][0] == "gauge":
            self._metrics[key].set(value)
        elif value > before:
            self._metrics[key].increment(value - before)

    def _run(self) -> None:
        pause = self.period_s
        while not self._stop.wait(pause):
            start = time.monotonic()
            try:
                self.publish()
            except Exception:  # metrics that cannot be set are no reason to stop serving
                log.exception("publishing metrics")
            pause = max(self.period_s, PAUSE_RATIO * (time.monotonic() - start))
