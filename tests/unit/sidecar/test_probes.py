"""Backbones are probed again and again, whatever this machine is short of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from live_server import status

from fmplex_backend.status import BackboneStatus
from fmplex_controller.sidecar import probes as probes_module
from fmplex_controller.sidecar.probes import Probes
from fmplex_controller.sidecar.triton import ENDED_S, PROBE_S


class Turns:
    """Stops a loop after so many turns."""

    def __init__(self, turns: int) -> None:
        self.left = turns

    def wait(self, _seconds: float) -> bool:
        self.left -= 1
        return self.left < 0


class Pool:
    """Runs what it is given at once, but for the first turn: then it can start no thread."""

    def __init__(self, *_: Any) -> None:
        self.can_start = False

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to wait for."""

    def submit(self, run: Callable[[str], None], backbone: str) -> None:
        if not self.can_start:
            self.can_start = True
            raise RuntimeError("can't start new thread")
        run(backbone)


class FakeTriton:
    def __init__(self) -> None:
        self.timeouts: list[float] = []

    def probe(self, _backbone: str, timeout: float) -> BackboneStatus:
        self.timeouts.append(timeout)
        return status()


def test_probing_goes_on_where_no_thread_could_be_started(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(probes_module, "ThreadPoolExecutor", Pool)
    told: list[str] = []
    triton, stop = FakeTriton(), Turns(3)
    probes = Probes(triton, lambda backbone, *_: told.append(backbone), lambda: 0.0)  # type: ignore[arg-type]
    probes.targets = frozenset({"base"})
    probes.run(stop)  # type: ignore[arg-type]
    assert told == ["base", "base"]
    assert "backbones cannot be probed at the moment: can't start new thread" in caplog.text


def test_a_process_that_has_ended_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_module, "ThreadPoolExecutor", Pool)
    triton, ended = FakeTriton(), iter((False, True))
    probes = Probes(triton, lambda *_: None, lambda: 0.0, has_ended=lambda _: next(ended))  # type: ignore[arg-type]
    probes.targets = frozenset({"base"})
    probes.run(Turns(3))  # type: ignore[arg-type]
    assert triton.timeouts == [PROBE_S, ENDED_S]
