"""The launcher ends with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fmplex_backend import control_key
from fmplex_controller.server import launcher


class TestLauncher:
    def test_the_command_ends_with_its_parent(self) -> None:
        program = (
            "import os, subprocess, sys, time\n"
            f"child = subprocess.Popen([sys.executable, '-I', '-S', {launcher.__file__!r}, str(os.getpid()), "
            "'/bin/sleep', '60'])\n"
            "print(child.pid, flush=True)\n"
            "time.sleep(60)\n"
        )
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            wait_for(lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n")
            parent.send_signal(signal.SIGKILL)
            wait_for(lambda: not alive(child))

    def test_an_orphan_from_birth_does_not_start(self) -> None:
        line = [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid() + 1), "/bin/sleep", "60"]
        assert subprocess.run(line, check=False, timeout=30).returncode == 1

    def test_the_key_is_put_into_the_arguments_and_not_passed_on(self) -> None:
        echo = [sys.executable, "-c", "import os, sys; print(sys.argv[1], os.environ.get('FMPLEX_CONTROL_KEY'))"]
        line = [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), *echo, f"a={launcher.KEY}"]
        variables = {**os.environ, launcher.VARIABLE: "s3cret"}
        done = subprocess.run(line, env=variables, stdout=subprocess.PIPE, text=True, check=True, timeout=30)
        assert done.stdout == "a=s3cret None\n"

    def test_it_knows_the_variable(self) -> None:
        assert launcher.VARIABLE == control_key.VARIABLE


def alive(pid: int) -> bool:
    """Whether the process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
