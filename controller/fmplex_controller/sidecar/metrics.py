"""The controller's own metrics, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from fmplex_controller.records.events import DONE, Event
from fmplex_controller.sidecar.board import Board


class Metrics:
    """Counts events as they are told; reads the rest from the board when it is asked."""

    def __init__(self, board: Board) -> None:
        self.registry = CollectorRegistry()
        self._actions = Counter(
            "fmplex_controller_actions",
            "What the controller has done or found out, by kind and by whether it succeeded",
            ("kind", "outcome"),
            registry=self.registry,
        )
        self._ends = Counter(
            "fmplex_controller_backbone_ends",
            "Processes of a backbone that were found dead or hanging",
            ("backbone",),
            registry=self.registry,
        )
        self.registry.register(_OfBoard(board))

    def told(self, event: Event) -> None:
        """An event of the journal."""
        self._actions.labels(event.kind, "done" if event.outcome == DONE else "failed").inc()
        if event.kind in ("dead", "given-up"):
            self._ends.labels(event.model).inc()

    def text(self) -> bytes:
        """As Prometheus reads them."""
        return generate_latest(self.registry)


class _OfBoard(Collector):
    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[GaugeMetricFamily]:
        board = self._board
        values = {
            "last_round_timestamp_seconds": (
                "When the controller last compared repository and server",
                board.last_round,
            ),
            "backbones_dead": ("Backbones whose processes do not answer", len(board.dead)),
            "backbones_given_up": ("Of them, those that are not loaded again", len(board.given_up)),
            "quarantined": ("Directories with an ERROR.txt", len(board.quarantined)),
            "working": ("0 while the server or the repository is away", 0 if board.problem else 1),
        }
        for name, (text, value) in values.items():
            if value is not None:
                yield GaugeMetricFamily(f"fmplex_controller_{name}", text, value=value)
