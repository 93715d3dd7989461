"""Processes of backbones by their command lines, and whether they run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fmplex_controller.sidecar.backbone_processes import STUB, Processes, end_process

BASE = "base"


@contextlib.contextmanager
def process(folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """One of that name that has the model `base`, as a stub has it."""
    file = folder / BASE / "1" / "model.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("print(flush=True)\nimport time\ntime.sleep(60)\n")
    with subprocess.Popen([name, str(file)], executable=sys.executable, stdout=subprocess.PIPE) as found:
        assert found.stdout
        found.stdout.readline()  # it runs, and has its command line
        try:
            yield found
        finally:
            found.kill()


def test_only_a_backbones_process_is_ended(tmp_path: Path) -> None:
    assert not end_process(2**22 + 1, BASE)
    with process(tmp_path, "something_else") as other:
        assert not end_process(other.pid, BASE)
        assert other.poll() is None
    with process(tmp_path, STUB) as stub:
        assert not end_process(stub.pid, "other")
        assert end_process(stub.pid, BASE)
        assert stub.wait(20) == -signal.SIGKILL


def test_one_that_was_seen_is_known_to_be_dead_or_stopped(tmp_path: Path) -> None:
    processes = Processes()
    assert not processes.is_dead(BASE)
    processes.named(BASE, os.getpid())
    assert not processes.is_dead(BASE), "it is none of a backbone"
    processes.named(BASE, 2**22 + 1)
    assert not processes.is_dead(BASE), "nobody has seen it: it may run in another container"
    with process(tmp_path, STUB) as stub:
        processes.named(BASE, stub.pid)
        assert not processes.is_dead(BASE)
        stub.send_signal(signal.SIGSTOP)
        wait_until_dead(processes)
        assert not processes.has_ended(BASE)
        stub.send_signal(signal.SIGCONT)
        stub.kill()
        stub.wait(20)
        assert processes.has_ended(BASE)
    assert processes.is_dead(BASE)


def wait_until_dead(processes: Processes) -> None:
    end = time.monotonic() + 20
    while not processes.is_dead(BASE):
        assert time.monotonic() < end
        time.sleep(0.01)
