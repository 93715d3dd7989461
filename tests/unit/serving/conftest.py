"""Fixtures of the tests that run a whole backbone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from backend_fixtures import write_task
from service_fixtures import Gate, ServiceRig


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two tasks; files of tests that want others have a `root` of their own."""
    write_task(tmp_path, "one", 0, task={"mark": 1})
    write_task(tmp_path, "two", 1, task={"mark": 2})
    return tmp_path


@pytest.fixture
def rig(root: Path) -> Iterator[ServiceRig]:
    """Started; stopped at the end."""
    rig = ServiceRig(root)
    rig.service.start()
    yield rig
    rig.stop()
    assert rig.exits == []


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def gated(tmp_path: Path, gate: Gate) -> Iterator[ServiceRig]:
    """One item per batch, and every pass waits for the gate."""
    write_task(tmp_path, "one", 0, max_queue=3)
    write_task(tmp_path, "two", 1)
    rig = ServiceRig(tmp_path, gate, max_items=1, max_queue=5)
    rig.service.start()
    yield rig
    gate.free()
    rig.stop()
