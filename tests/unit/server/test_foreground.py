"""A server in the foreground: signals drain or kill it, its end is the command's."""

from __future__ import annotations

import errno
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from fmplex_backend.errors import ServerExited, SetupProblem
from fmplex_controller.records.journal import Journal
from fmplex_controller.server import foreground
from fmplex_controller.server.ends import MOST
from fmplex_controller.server.options import ServerOptions
from fmplex_controller.server.process import ModelState


class Process:
    """A Server whose process only remembers what was asked of it."""

    def __init__(self, code: int, signals: int = 0, during_load: bool = False, hangs: bool = False) -> None:
        self.code, self.signals, self.during_load, self.hangs = code, signals, during_load, hangs
        self.options = ServerOptions(Path("models"), extra=("--exit-timeout-secs=5",))
        self.now = 0.0
        self.started = self.stopping = False
        self.calls: list[str] = []
        self.ends = 0  # so many times it ends unasked before it serves
        self.problems: list[Exception] = []  # each keeps it from being started again once

    def start(self) -> None:
        self.started = True

    def wait_ready(self) -> tuple[ModelState, ...]:
        if self.during_load:
            self._signal()
            raise self.exited(self.code)
        return ()

    def restart(self) -> None:
        self.calls.append("restart")
        if self.problems:
            raise self.problems.pop()

    def wait(self, timeout: float | None = None) -> int:
        if self.ends:
            self.ends -= 1
            return -signal.SIGFPE
        self._signal()
        if self.hangs and "kill" not in self.calls:
            assert timeout
            self.now += timeout
            raise subprocess.TimeoutExpired("tritonserver", timeout)
        return self.code

    def _signal(self) -> None:
        for _ in range(self.signals):
            signal.raise_signal(signal.SIGTERM)
        self.signals = 0

    def terminate(self) -> None:
        self.stopping = True
        self.calls.append("terminate")

    def kill(self) -> None:
        self.stopping = True
        self.calls.append("kill")

    def stop(self) -> None:
        self.calls.append("stop")

    def exited(self, code: int) -> ServerExited:
        return ServerExited(f"status {code}")


class Companion:
    """Remembers what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.journal = Journal()
        self.events: list[str] = []
        self.journal.listeners.append(lambda event: self.events.append(event.kind))

    def start(self) -> None:
        self.calls.append("start")

    def keep(self) -> None:
        self.calls.append("keep")

    def stop(self) -> None:
        self.calls.append("stop")


def serve(process: Process, companion: Companion | None = None, beside: Sequence[Companion] = ()) -> int:
    """Through the foreground, which must leave the signal handlers as it found them."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        return foreground.serve(process, lambda: None, lambda: process.now, companion, beside)  # type: ignore[arg-type]
    finally:
        assert signal.getsignal(signal.SIGTERM) is before


class TestForeground:
    def test_a_signal_drains(self) -> None:
        process = Process(code=0, signals=1)
        assert serve(process) == 0
        assert process.calls == ["terminate", "stop"]

    def test_a_second_one_kills(self, capsys: pytest.CaptureFixture[str]) -> None:
        process = Process(code=-signal.SIGKILL, signals=2)
        assert serve(process) == 1
        assert process.calls == ["terminate", "kill", "stop"]
        assert "did not drain" in capsys.readouterr().err

    def test_one_that_hangs_is_killed(self, capsys: pytest.CaptureFixture[str]) -> None:
        process = Process(code=-signal.SIGKILL, signals=1, hangs=True)
        assert serve(process) == 1
        assert process.calls == ["terminate", "kill", "stop"]
        assert 15 < process.now < 17
        assert "does not end within 15 s: killed" in capsys.readouterr().err

    def test_a_signal_while_it_loads_is_no_failure(self) -> None:
        process = Process(code=-signal.SIGTERM, signals=1, during_load=True)
        assert serve(process) == 0

    @pytest.mark.parametrize("during_load", [True, False])
    def test_a_server_that_ends_unasked_is_one(self, during_load: bool) -> None:
        process = Process(code=0, during_load=during_load)
        with pytest.raises(ServerExited):
            serve(process)
        assert process.calls == ["stop"]

    def test_with_a_companion_it_is_started_again(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(foreground, "_pause", lambda server, seconds: None)
        process, companion = Process(code=0, signals=1), Companion()
        process.ends = 2
        assert serve(process, companion) == 0
        assert process.calls == ["restart", "restart", "terminate", "stop"]
        assert companion.calls == ["start", "stop"]
        assert capsys.readouterr().err.count("fmplex: status -8 It is started again") == 2
        restarts = ["server-ended", "server-restarted"] * 2
        assert companion.events == ["server-started", *restarts, "server-stopped"]

    def test_where_it_cannot_be_started_for_a_moment_it_is_a_moment_later(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(foreground, "_pause", lambda server, seconds: None)
        process, companion = Process(code=0, signals=1), Companion()
        process.ends = 1
        process.problems = [SetupProblem("there is no repository"), BlockingIOError(errno.EAGAIN, "no process is left")]
        assert serve(process, companion) == 0
        assert process.calls == ["restart"] * 3 + ["terminate", "stop"]
        assert "tritonserver could not be started: there is no repository. It is started" in capsys.readouterr().err
        ends = ["server-ended"] * 3
        assert companion.events == ["server-started", *ends, "server-restarted", "server-stopped"]

    def test_but_not_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(foreground, "_pause", lambda server, seconds: None)
        process, companion = Process(code=0), Companion()
        process.ends = 100
        with pytest.raises(ServerExited):
            serve(process, companion)
        assert process.calls == ["restart"] * MOST + ["stop"]
        assert companion.events.count("server-ended") == MOST + 1
        assert companion.calls == ["start", "stop"]

    def test_what_is_beside_it_runs_from_its_start_to_its_end(self) -> None:
        for companion in (None, Companion()):
            process, beside = Process(code=0, signals=1), Companion()
            assert serve(process, companion, [beside]) == 0
            assert (beside.calls[0], beside.calls[-1]) == ("start", "stop")
        failing, beside = Process(code=0, during_load=True), Companion()
        with pytest.raises(ServerExited):
            serve(failing, None, [beside])
        assert beside.calls[-1] == "stop"
