"""Grafana's dashboard asks for metrics that there are; tests/triton/test_watch.py puts its questions to Prometheus."""

from __future__ import annotations

import re

from dashboard import PANELS
from imports import ROOT
from prometheus_client.parser import text_string_to_metric_families

from fmplex_backend.serving.metrics import FAMILIES
from fmplex_controller.records.events import event_now
from fmplex_controller.sidecar.board import Board
from fmplex_controller.sidecar.metrics import Metrics


def test_every_metric_exists() -> None:
    metrics = Metrics(Board())
    metrics.told(event_now("dead", "minilm"))
    metrics.told(event_now("loaded", "a", outcome="it could not be"))
    families = text_string_to_metric_families(metrics.text().decode())
    own = {sample.name for family in families for sample in family.samples}
    own.add("fmplex_controller_last_round_timestamp_seconds")  # from the first round on
    assert {"fmplex_controller_working", "fmplex_controller_actions_total"} < own
    asked = {name for panel in PANELS for name in re.findall(r"\bfmplex_\w+", panel.expression)}
    assert asked <= own | FAMILIES.keys()
    assert {"fmplex_service_seconds_total", "fmplex_controller_backbones_dead"} < asked
    named = set(re.findall(r"`(fmplex_controller_\w+)`", (ROOT / "docs" / "watch.md").read_text()))
    assert named <= own


def test_panels_are_numbered_and_titled() -> None:
    assert len({panel.number for panel in PANELS}) == len(PANELS) == len({panel.title for panel in PANELS})
