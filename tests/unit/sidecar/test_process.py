"""The controller as a process beside a server: started, started again, stopped."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fmplex_controller.server import beside as beside_module
from fmplex_controller.server.key import ControlKey
from fmplex_controller.server.options import ServerOptions
from fmplex_controller.sidecar import process as process_module
from fmplex_controller.sidecar.process import SidecarProcess

# Instead of the controller: writes down what it was started with, and waits.
PROGRAM = """
import os, pathlib, sys, time
pathlib.Path(os.environ["SAID"]).write_text(f"{sys.argv[1:]} {os.environ['FMPLEX_CONTROL_KEY']}")
time.sleep(60 if os.environ["WAITS"] else 0)
"""


class FakeServer:
    """A server that is nowhere."""

    def __init__(self, repository: Path) -> None:
        self.options = ServerOptions(repository, control_key="s3cret")
        self.control_key = ControlKey(self.options)
        self.grpc_url = "127.0.0.1:1"


class Rig:
    """A controller's process, and a clock that the test decides."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said, self.now = folder / "said", 0.0
        (folder / "stand_in.py").write_text(PROGRAM)
        monkeypatch.setattr(process_module, "MODULE", "stand_in")
        self.monkeypatch = monkeypatch
        self.set("PYTHONPATH", str(folder), "SAID", str(self.said), "WAITS", "yes")
        server: Any = FakeServer(folder)
        self.sidecar = SidecarProcess(server, lambda: self.now)

    def set(self, *pairs: str) -> None:
        """Variables."""
        for name, value in zip(pairs[::2], pairs[1::2], strict=True):
            self.monkeypatch.setenv(name, value)

    @property
    def process(self) -> Any:
        """The Popen."""
        return self.sidecar._process


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    rig = Rig(tmp_path, monkeypatch)
    yield rig
    rig.sidecar.stop()


def test_it_is_given_the_key_as_a_variable(rig: Rig, tmp_path: Path) -> None:
    rig.set("WAITS", "")
    rig.sidecar.start()
    assert rig.process.wait(20) == 0
    assert rig.said.read_text() == f"['{tmp_path}', '127.0.0.1:1'] s3cret"


def test_it_is_started_again_after_pauses_and_at_last_given_up(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    rig.set("WAITS", "")
    rig.sidecar.start()
    for pause in (0.0, 1.0, 2.0, 4.0, 8.0):
        assert rig.process.wait(20) == 0
        rig.sidecar.keep()
        assert rig.process is None
        rig.now += max(pause - 0.5, 0.0)
        rig.sidecar.keep()
        assert (rig.process is None) == (pause > 0)
        rig.now += 0.5
        rig.sidecar.keep()
        assert rig.process is not None
    assert rig.process.wait(20) == 0
    rig.sidecar.keep()
    rig.now += 1000.0
    rig.sidecar.keep()
    assert rig.process is None
    said = capsys.readouterr().err.splitlines()
    assert said[:5] == ["fmplex: the controller ended with status 0: started again"] * 5
    assert said[5:] == ["fmplex: the controller ended with status 0: given up; nothing follows the repository any more"]


def test_it_runs_until_it_is_stopped(rig: Rig) -> None:
    rig.sidecar.start()
    pid = rig.process.pid
    rig.sidecar.keep()
    assert rig.process.pid == pid
    rig.sidecar.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    rig.sidecar.stop()


def test_a_machine_that_can_start_none_at_the_moment_may_a_second_later(
    rig: Rig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.set("WAITS", "")
    rig.sidecar.start()
    assert rig.process.wait(20) == 0
    rig.sidecar.keep()
    with monkeypatch.context() as patched:
        patched.setattr(beside_module.subprocess, "Popen", refuse)
        rig.sidecar.keep()
    assert rig.process is None
    rig.now += 1.0
    rig.sidecar.keep()
    assert rig.process is not None
    said = capsys.readouterr().err
    assert (
        "fmplex: the controller cannot be started: [Errno 11] Resource temporarily unavailable: started again" in said
    )


def refuse(*_: Any, **__: Any) -> None:
    raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
