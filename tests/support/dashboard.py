"""What the panels of docker/grafana-dashboard.json ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).parents[2] / "docker" / "grafana-dashboard.json"


class Panel(NamedTuple):
    """One of its questions to Prometheus."""

    number: int
    title: str
    expression: str  # with Grafana's variables

    def with_variables(self) -> str:
        """As Grafana sends it: of all backbones and tasks."""
        found = self.expression.replace("$__rate_interval", "1m")
        return found.replace("$backbone", ".*").replace("$task", ".*")


PANELS = [
    Panel(panel["id"], panel["title"], target["expr"])
    for panel in json.loads(FILE.read_text(encoding="utf-8"))["panels"]
    for target in panel["targets"]
]
