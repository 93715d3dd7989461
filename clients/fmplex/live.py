"""What a running server says about its tasks: queues, and shares of the backbone's time."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import dataclass

LINE = re.compile(r"^fmplex_(queue_depth|service_seconds_total)\{(.*?)\} (\S+)$", re.MULTILINE)
TASK = re.compile(r'task="([^"]*)"')
BACKBONE = re.compile(r'backbone="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Live:
    """A task on a running server."""

    queued: int
    share: float  # of its backbone's time since the server started


def read(url: str, timeout: float = 1.0) -> dict[str, Live]:
    """By task, of a /metrics page; empty where no server answers."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            page = answer.read().decode()
    except OSError:
        return {}
    return parse(page)


def parse(page: str) -> dict[str, Live]:
    """By task, of the text of /metrics."""
    queued: dict[str, int] = {}
    service: dict[str, float] = {}
    total: dict[str, float] = {}
    backbones: dict[str, str] = {}
    for name, labels, value in LINE.findall(page):
        task, backbone = TASK.search(labels), BACKBONE.search(labels)
        if task is None or backbone is None:
            continue
        backbones[task[1]] = backbone[1]
        if name == "queue_depth":
            queued[task[1]] = int(float(value))
        else:
            service[task[1]] = float(value)
            total[backbone[1]] = total.get(backbone[1], 0.0) + float(value)
    return {
        task: Live(queued.get(task, 0), service.get(task, 0.0) / total[backbone] if total.get(backbone) else 0.0)
        for task, backbone in backbones.items()
    }
