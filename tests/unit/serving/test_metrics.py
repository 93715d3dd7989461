"""What is published: counters only go up, what has not changed is not set, what is gone is dropped."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import (
    BACKBONE,
    Caller,
    TextStandIn,
    edit,
    group_outputs,
    text_task,
    write_group,
    write_task,
    write_version,
)
from service_fixtures import ServiceRig, until

from fmplex_backend.repository.parameters import BackboneConfig
from fmplex_backend.serving.metrics import FAMILIES, Publisher, period_of, samples
from fmplex_backend.serving.service import Service
from fmplex_backend.serving.traffic_split import point
from fmplex_backend.types import Metric as RuntimeMetric
from fmplex_backend.types import Reading, Vfm

Key = tuple[str, tuple[tuple[str, str], ...]]


class Metric:
    """As pb_utils.Metric; tells its log what was set."""

    def __init__(self, key: Key, log: list[tuple[Key, str, float]]) -> None:
        self.key, self.log, self.value = key, log, 0.0

    def increment(self, value: float) -> None:
        assert value > 0
        assert FAMILIES[self.key[0]][0] == "counter"
        self.value += value
        self.log.append((self.key, "increment", value))

    def set(self, value: float) -> None:
        assert FAMILIES[self.key[0]][0] == "gauge"
        self.value = value
        self.log.append((self.key, "set", value))


class Families:
    """As pb_utils.MetricFamily, the class."""

    COUNTER, GAUGE = "counter", "gauge"

    def __init__(self) -> None:
        self.log: list[tuple[Key, str, float]] = []
        self.metrics: dict[Key, Metric] = {}

    def __call__(self, *, name: str, description: str, kind: str) -> Family:
        assert description
        assert kind == FAMILIES[name][0]
        return Family(name, self)


class Family:
    """As pb_utils.MetricFamily, one of them."""

    def __init__(self, name: str, families: Families) -> None:
        self.name, self.families = name, families

    def Metric(self, *, labels: dict[str, str]) -> Metric:
        key = (self.name, tuple(sorted(labels.items())))
        metric = self.families.metrics[key] = Metric(key, self.families.log)
        return metric


@pytest.fixture
def caller() -> Caller:
    return Caller()


@pytest.fixture
def service(tmp_path: Path) -> Service:
    write_task(tmp_path, "one", 0, weight=2.0)
    write_task(tmp_path, "two", 1, task={"adapter": "lora"})
    config = BackboneConfig(model="none")
    service = Service(tmp_path, BACKBONE, config, 8, lambda cost: TextStandIn(sleep=lambda s: None), lambda code: None)
    service.loader.tasks.grace = 0.0
    service.loader.refresh()
    service.engine.step(wait=False)
    return service


def ask(service: Service, caller: Caller, tag: int, text: str = "a b") -> None:
    """A call, as far as the reply thread."""
    service.submit(caller.call((tag,), text))
    run(service)


def run(service: Service) -> None:
    """What the threads would do."""
    while service.preparation.prepare_next(wait=False):
        pass
    service.engine.step(wait=False)


def of(service: Service, family: str, **labels: str) -> float | None:
    """The one sample with these labels among others."""
    found = [each for each in samples(service) if each.family == family and labels.items() <= dict(each.labels).items()]
    assert len(found) < 2
    return found[0].value if found else None


# -- samples


def test_every_sample_is_of_a_family_and_none_comes_twice(service: Service, caller: Caller, tmp_path: Path) -> None:
    write_group(tmp_path, "both", 7, {"one": 0, "two": 1})
    service.loader.refresh()
    service.submit(caller.call((7,), asks=group_outputs(0, 1)))
    run(service)
    ask(service, caller, 0)
    ask(service, caller, 0, "fail")
    service.submit(caller.call(()))
    found = list(samples(service))
    of_shadows = {"fmplex_shadow_copies_total", "fmplex_shadow_rows_total"}  # see the last test
    assert {sample.family for sample in found} == FAMILIES.keys() - of_shadows
    assert len({(sample.family, sample.labels) for sample in found}) == len(found)
    assert all(dict(sample.labels)["backbone"] == BACKBONE for sample in found)
    assert of(service, "fmplex_group_requests_total", task="both") == 1


def test_a_backbones_samples(service: Service, caller: Caller) -> None:
    for tag in (0, 1, 1):
        ask(service, caller, tag)
    backbone = {name.removeprefix("fmplex_backbone_"): of(service, name) for name in FAMILIES if "_backbone_" in name}
    busy = backbone.pop("busy_seconds_total")
    assert backbone == {
        "batches_total": 3,
        "passes_total": 3,
        "items_total": 3,
        "rows_saved_total": 0,
        "broken_passes_total": 0,
        "kept_answers": 0,
        "kept_bytes": 0,
        "vfms": 2,
        "adapters": 1,
    }
    assert busy == pytest.approx(sum(of(service, "fmplex_service_seconds_total", task=t) or 0 for t in ("one", "two")))


def test_a_vfms_samples(service: Service, caller: Caller) -> None:
    ask(service, caller, 0)
    service.submit(caller.call((0,)))
    assert of(service, "fmplex_requests_total", task="one") == 1
    assert of(service, "fmplex_queue_depth", task="one", vfm="0") == 1
    assert of(service, "fmplex_weight", task="one") == 2


def test_failures_go_by_reason_wherever_they_happened(service: Service, caller: Caller) -> None:
    for text in ("refuse", "fail", "poison", "refuse"):
        ask(service, caller, 0, text)
    assert of(service, "fmplex_failures_total", task="one", reason="invalid") == 2
    assert of(service, "fmplex_failures_total", task="one", reason="execution") == 2
    assert of(service, "fmplex_failures_total", task="two", reason="invalid") is None


def test_calls_to_the_backbone_itself_are_nobodys(service: Service, caller: Caller) -> None:
    service.submit(caller.call(()))
    assert of(service, "fmplex_failures_total", task="", reason="invalid") == 1


def test_a_refused_task_counts_its_failures(service: Service, caller: Caller) -> None:
    edit(service.loader.repository.root / "one" / "config.pbtxt", '"2"', '"heavy"')
    service.loader.refresh()
    service.submit(caller.call((0,)))
    assert of(service, "fmplex_failures_total", task="one", reason="refused") == 1
    assert of(service, "fmplex_weight", task="one") is None
    assert of(service, "fmplex_backbone_vfms") == 1


# -- publishing


def test_what_is_published_is_what_stands_there(service: Service, caller: Caller) -> None:
    families = Families()
    publisher = Publisher(service, families)
    for round_ in range(3):
        for _ in range(round_ + 1):
            ask(service, caller, round_ % 2)
        publisher.publish()
        for sample in samples(service):
            metric = families.metrics[sample.family, tuple(sorted(sample.labels))]
            assert metric.value == pytest.approx(sample.value)


def test_only_what_has_changed_is_set(service: Service, caller: Caller) -> None:
    families = Families()
    publisher = Publisher(service, families)
    publisher.publish()
    families.log.clear()
    publisher.publish()
    assert families.log == []
    ask(service, caller, 0)
    publisher.publish()
    assert families.log
    assert all(("task", "two") not in key[1] for key, _, _ in families.log)


def test_a_counter_that_begins_again_goes_on(service: Service, caller: Caller) -> None:
    """A task that was removed and came back within a round: Prometheus must see no step down."""
    families = Families()
    publisher = Publisher(service, families)
    for _ in range(3):
        ask(service, caller, 0)
    publisher.publish()
    root = service.loader.repository.root
    (root / "one").rename(root.parent / "aside")
    service.loader.refresh()
    (root.parent / "aside").rename(root / "one")
    service.loader.refresh()
    service.engine.step(wait=False)
    publisher.publish()
    ask(service, caller, 0)
    publisher.publish()
    values = [value for key, _, value in families.log if key[0] == "fmplex_requests_total" and ("vfm", "0") in key[1]]
    assert values == [3, 1]


def test_what_is_gone_is_dropped(service: Service) -> None:
    publisher = Publisher(service, Families())
    publisher.publish()
    root = service.loader.repository.root
    (root / "one").rename(root.parent / "aside")
    service.loader.refresh()
    publisher.publish()
    assert not any(("task", "one") in labels for _, labels in publisher._metrics)
    assert any(("task", "two") in labels for _, labels in publisher._metrics)


def test_it_publishes_on_a_thread_of_its_own(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    families = Families()
    publisher = Publisher(service, families, 0.01)
    published = threading.Event()
    former = publisher.publish

    def publish() -> None:
        former()
        published.set()

    monkeypatch.setattr(publisher, "publish", publish)
    publisher.start()
    assert published.wait(20)
    publisher.stop()
    assert publisher._metrics == {}
    assert families.metrics


def test_nothing_of_tritons_outlives_the_publisher(service: Service) -> None:
    families = Families()
    gone: list[str] = []
    publisher = Publisher(service, families)
    publisher.publish()
    told = [weakref.finalize(family, gone.append, name) for name, family in publisher._families.items()]
    told += [weakref.finalize(metric, gone.append, "a metric") for metric in families.metrics.values()]
    families.metrics.clear()
    publisher.start()
    publisher.stop()
    metrics_gone = gone.count("a metric")
    assert not any(each.alive for each in told)
    assert set(gone[:metrics_gone]) == {"a metric"}  # Triton wants them gone before their families
    assert set(gone[metrics_gone:]) == FAMILIES.keys()


def test_one_that_cannot_be_set_costs_itself_alone(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    families = Families()
    publisher = Publisher(service, families)
    former = publisher._families["fmplex_weight"].Metric

    def refuse(labels: dict[str, str]) -> Any:
        if labels["task"] == "one":
            raise ValueError("odd label")
        return former(labels=labels)

    monkeypatch.setattr(publisher._families["fmplex_weight"], "Metric", refuse)
    for _ in range(3):
        publisher.publish()
    assert caplog.text.count("ValueError: odd label") == 1
    weights = [dict(labels)["task"] for family, labels in publisher._metrics if family == "fmplex_weight"]
    assert weights == ["two"]
    assert ("fmplex_backbone_vfms", (("backbone", BACKBONE),)) in publisher._metrics


def test_a_name_that_is_no_text_is_no_label(tmp_path: Path) -> None:
    write_task(tmp_path, "one", 0)
    write_task(tmp_path, "two", 1)
    edit(tmp_path / "one" / "config.pbtxt", 'name: "one"\n', "")
    (tmp_path / "one").rename(tmp_path / os.fsdecode(b"x\xff"))
    service = ServiceRig(tmp_path).service
    service.loader.refresh()
    assert {value for sample in samples(service) for key, value in sample.labels if key == "task"} == {"two"}


def test_a_round_that_fails_is_not_the_last(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = Publisher(service, Families(), 0.01)
    rounds: list[int] = []
    again = threading.Event()

    def publish() -> None:
        rounds.append(1)
        if len(rounds) == 1:
            raise RuntimeError("Triton is busy")
        again.set()

    monkeypatch.setattr(publisher, "publish", publish)
    publisher.start()
    assert again.wait(20)
    publisher.stop()


@pytest.mark.parametrize(("value", "period_s"), [(None, 1.0), ("0.25", 0.25), ("15", 15.0)])
def test_the_server_may_set_another_period(value: str | None, period_s: float) -> None:
    assert period_of(value) == period_s


@pytest.mark.parametrize("value", ["", "soon", "0", "-1", "inf", "nan"])
def test_a_period_that_is_none_is_named(value: str) -> None:
    with pytest.raises(ValueError, match=r"FMPLEX_METRICS_S is '.*'\. Set it to seconds above 0"):
        period_of(value)


def test_a_runtime_may_have_metrics_of_its_own(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"own_total": RuntimeMetric("counter", "its own"), "own_now": RuntimeMetric("gauge", "of the backbone")}

    def readings(vfm: Vfm | None) -> list[Reading]:
        return [Reading("own_now", 5.0)] if vfm is None else [Reading("own_total", vfm.id + 1.0, (("le", "+Inf"),))]

    monkeypatch.setattr(service.runtime, "metrics", own, raising=False)
    monkeypatch.setattr(service.runtime, "readings", readings)
    monkeypatch.setattr(sys.modules[__name__], "FAMILIES", FAMILIES | own)
    families = Families()
    publisher = Publisher(service, families)
    publisher.publish()
    publisher.publish()
    found = {key: metric.value for key, metric in families.metrics.items() if key[0].startswith("own")}
    backbone = ("backbone", BACKBONE)
    assert found == {
        ("own_now", (backbone,)): 5.0,
        ("own_total", (backbone, ("le", "+Inf"), ("task", "one"), ("vfm", "0"))): 1.0,
        ("own_total", (backbone, ("le", "+Inf"), ("task", "two"), ("vfm", "1"))): 2.0,
    }
    assert [key[0] for key, _, _ in families.log].count("own_total") == 2


# -- versions that are tried


def test_what_a_family_measures_is_told_of_a_canary_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = text_task({"kind": "embedding"})
    tried = {"canary_version": "2", "canary_share": "0.5", "shadow_version": "3"}
    write_task(tmp_path, "one", 0, task=embed, serves=1, parameters=tried)
    for number in (2, 3):
        write_version(tmp_path, "one", number, embed)
    rig = ServiceRig(tmp_path)
    rig.service.loader.refresh()

    def readings(vfm: Vfm | None) -> list[Reading]:
        return [] if vfm is None else [Reading("fmplex_sequences_running", vfm.account)]

    monkeypatch.setattr(rig.service.runtime, "readings", readings)
    found = [dict(each.labels) for each in samples(rig.service) if each.family == "fmplex_sequences_running"]
    assert [(labels.get("role"), labels.get("version")) for labels in found] == [(None, None), ("canary", "2")]


def test_a_canary_counts_as_the_tasks_and_a_shadow_only_what_it_is_charged(tmp_path: Path) -> None:
    embed = text_task({"kind": "embedding"})
    tried = {"canary_version": "2", "canary_share": "0.5", "shadow_version": "3"}
    write_task(tmp_path, "one", 0, task=embed, serves=1, parameters=tried)
    for number in (2, 3):
        write_version(tmp_path, "one", number, embed)
    rig = ServiceRig(tmp_path)
    rig.service.start()
    for number in range(10):
        rig.ask(0, request_id=f"r{number}")
    own = sum(point("one/2", f"r{number}") >= 0.5 for number in range(10))
    assert 0 < own < 10
    until(lambda: of(rig.service, "fmplex_shadow_copies_total", outcome="compared") == own)
    assert of(rig.service, "fmplex_requests_total", role="canary", version="2") == 10 - own
    assert of(rig.service, "fmplex_requests_total", role="shadow") is None
    assert of(rig.service, "fmplex_shadow_rows_total", outcome="agreed", version="3") == own
    found = [sample for sample in samples(rig.service) if sample.family == "fmplex_service_seconds_total"]
    assert len(found) == 3
    busy = of(rig.service, "fmplex_backbone_busy_seconds_total")
    assert sum(sample.value for sample in found) == pytest.approx(busy)
    rig.stop()
