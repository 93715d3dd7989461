"""Publishes the plain numbers of the threads on Triton's /metrics, from a thread of its own.

Setting a Triton metric costs about 120 us of talk between processes, so only what has changed is set, about once
a second, and never more than a twentieth of the time is spent on it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from fmplex_backend.loader import Refusal
from fmplex_backend.service import Service
from fmplex_backend.vfm import Vfm

log = logging.getLogger("fmplex")

PERIOD_S = 1.0
REST = 20  # times as long as publishing took
Labels = tuple[tuple[str, str], ...]


class Sample(NamedTuple):
    """One number as it stands now."""

    family: str
    labels: Labels
    value: float


FAMILIES: dict[str, tuple[str, str]] = {
    "fmplex_requests_total": ("counter", "Requests of a vFM that went through the backbone"),
    "fmplex_items_total": ("counter", "Items (rows) of these requests"),
    "fmplex_failures_total": ("counter", "Requests answered with an error, by reason"),
    "fmplex_queue_depth": ("gauge", "Requests of a vFM that wait"),
    "fmplex_queue_seconds_total": ("counter", "Time the requests of a vFM waited, summed"),
    "fmplex_compute_seconds_total": ("counter", "Time from being taken to being finished, summed over requests"),
    "fmplex_service_seconds_total": ("counter", "Backbone time charged to a vFM"),
    "fmplex_deadline_misses_total": ("counter", "Requests finished after their deadline"),
    "fmplex_weight": ("gauge", "The weight of a vFM"),
    "fmplex_backbone_batches_total": ("counter", "Batches that a backbone ran"),
    "fmplex_backbone_passes_total": ("counter", "Passes over the backbone; a batch of mixed lengths takes several"),
    "fmplex_backbone_items_total": ("counter", "Items in these batches; divided by batches: the mean batch size"),
    "fmplex_backbone_busy_seconds_total": ("counter", "Time the backbone was running passes"),
    "fmplex_backbone_broken_passes_total": (
        "counter",
        "Passes that raised; their requests ran again, one by one",
    ),
    "fmplex_backbone_vfms": ("gauge", "vFMs on a backbone"),
    "fmplex_backbone_adapters": ("gauge", "vFMs with an adapter"),
}


def samples(service: Service) -> Iterator[Sample]:
    """Everything there is to publish."""
    backbone = (("backbone", service.name),)
    table = dict(service.loader.table)
    vfms = [entry for entry in table.values() if isinstance(entry, Vfm)]
    counts = service.engine.counts
    yield Sample("fmplex_backbone_batches_total", backbone, counts.batches)
    yield Sample("fmplex_backbone_passes_total", backbone, counts.passes)
    yield Sample("fmplex_backbone_items_total", backbone, counts.items)
    yield Sample("fmplex_backbone_busy_seconds_total", backbone, counts.busy_s)
    yield Sample("fmplex_backbone_broken_passes_total", backbone, counts.broken_passes)
    yield Sample("fmplex_backbone_vfms", backbone, len(vfms))
    yield Sample("fmplex_backbone_adapters", backbone, sum(vfm.adapted for vfm in vfms))
    for reason, count in list(service.intake.failures.items()):
        yield Sample("fmplex_failures_total", (*backbone, ("task", ""), ("reason", reason)), count)
    for tag, entry in table.items():
        labels = (*backbone, ("task", entry.name), ("vfm", str(tag)))
        if isinstance(entry, Refusal):
            yield from _failures(labels, entry.counts.failures)
        else:
            yield from _of_vfm(labels, entry)


def _of_vfm(labels: Labels, vfm: Vfm) -> Iterator[Sample]:
    counts = vfm.engine
    yield Sample("fmplex_requests_total", labels, counts.requests)
    yield Sample("fmplex_items_total", labels, counts.items)
    yield Sample("fmplex_queue_depth", labels, max(0, vfm.depth))
    yield Sample("fmplex_queue_seconds_total", labels, counts.queue_s)
    yield Sample("fmplex_compute_seconds_total", labels, counts.compute_s)
    yield Sample("fmplex_service_seconds_total", labels, vfm.service)
    yield Sample("fmplex_deadline_misses_total", labels, counts.misses)
    yield Sample("fmplex_weight", labels, vfm.weight)
    total: dict[str, int] = {}
    for part in (vfm.engine, vfm.intake, vfm.replied):
        for reason, count in list(part.failures.items()):
            total[reason] = total.get(reason, 0) + count
    yield from _failures(labels, total)


def _failures(labels: Labels, failures: dict[str, int]) -> Iterator[Sample]:
    for reason, count in list(failures.items()):
        yield Sample("fmplex_failures_total", (*labels, ("reason", reason)), count)


class Publisher:
    """Keeps Triton's metrics in step with `samples`.

    Args:
        metric_family: `pb_utils.MetricFamily`.
    """

    def __init__(self, service: Service, metric_family: Any) -> None:
        self.service = service
        self._kinds = {"counter": metric_family.COUNTER, "gauge": metric_family.GAUGE}
        self._families = {
            name: metric_family(name=name, description=text, kind=self._kinds[kind])
            for name, (kind, text) in FAMILIES.items()
        }
        self._metrics: dict[tuple[str, Labels], Any] = {}
        self._published: dict[tuple[str, Labels], float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fmplex-metrics", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and let go of the metrics, then of their families.

        One that outlives `finalize` tells Triton that it goes when there is no one to tell, and ends the process with a
        segmentation fault.
        """
        self._stop.set()
        self._thread.join()
        self._metrics.clear()
        self._families.clear()

    def publish(self) -> None:
        """One round: set what has changed, drop what is gone."""
        current = {(sample.family, sample.labels): float(sample.value) for sample in samples(self.service)}
        for key in self._metrics.keys() - current.keys():
            del self._metrics[key]
            del self._published[key]
        for key, value in current.items():
            before = self._published.get(key)
            if before == value:
                continue
            family, labels = key
            if key not in self._metrics:
                self._metrics[key] = self._families[family].Metric(labels=dict(labels))
            if FAMILIES[family][0] == "gauge":
                self._metrics[key].set(value)
            elif value > (before or 0.0):
                self._metrics[key].increment(value - (before or 0.0))
            self._published[key] = value

    def _run(self) -> None:
        pause = PERIOD_S
        while not self._stop.wait(pause):
            start = time.monotonic()
            try:
                self.publish()
            except Exception:  # numbers that do not come through are no reason to stop serving
                log.exception("publishing metrics")
            pause = max(PERIOD_S, REST * (time.monotonic() - start))
