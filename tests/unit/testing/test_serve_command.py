"""The command as a test starts it: a program in its place says what it was called with, and has children like its."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fmplex_controller.sidecar.process import MODULE
from testing import serve_command as module
from testing.serve_command import ServeCommand, serve_command
from testing.servers import LIVE

# Children wait for their input, which ends with their parent, however it ends. Until a child has said something, its
# words may not be those that it was started with yet.
WAIT = "echo; read word"
PROGRAM = """\
#!{python}
import json, os, signal, subprocess, sys
folder, WAIT = os.path.dirname(sys.argv[0]), {wait!r}

def child(*words, executable="/bin/sh"):
    process = subprocess.Popen(words, executable=executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process

def say(line):
    print(line, flush=True)

def wait():
    signal.pause()

{body}
"""


@pytest.fixture
def stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a program with this body into the place of Python; returns the folder for logs."""

    def put(body: str) -> Path:
        program = tmp_path / "program"
        program.write_text(PROGRAM.format(python=python, wait=WAIT, body=textwrap.dedent(body)))
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        return tmp_path

    python = sys.executable
    return put


StandsIn = Callable[[str], Path]


def test_it_is_started_on_ports_of_its_own_with_options_and_variables(stands_in: StandsIn) -> None:
    folder = stands_in(
        """
        print(json.dumps([sys.argv[1:], os.environ["WORD"], "PATH" in os.environ]), file=sys.stderr, flush=True)
        say("ready")
        wait()
        """
    )
    with serve_command(Path("a repository"), folder, "--elastic", variables={"WORD": "here"}) as command:
        words, word, has_path = json.loads(command.log.read_text())
    assert words[:4] == ["-m", "fmplex", "serve", "a repository"]
    options = dict(zip(words[4:10:2], words[5:10:2], strict=True))
    assert options.keys() == {"--http-port", "--grpc-port", "--metrics-port"}
    assert len(set(options.values())) == 3
    assert command.http_url == f"127.0.0.1:{options['--http-port']}"
    assert command.grpc_url == f"127.0.0.1:{options['--grpc-port']}"
    assert words[10:] == ["--elastic"]
    assert (word, has_path) == ("here", True)


def test_it_is_ended_after_the_block_and_its_log_is_live_until_then(stands_in: StandsIn) -> None:
    folder = stands_in('say("ready"); wait()')
    with serve_command(folder, folder) as command:
        assert LIVE[-1] == command.log == folder / "server.log"
        assert command.process.poll() is None
    assert command.process.returncode == -signal.SIGTERM
    assert command.log not in LIVE


def test_one_that_is_ready_is_not_killed_later(stands_in: StandsIn) -> None:
    folder = stands_in('say("ready"); wait()')
    with serve_command(folder, folder):
        timers = [each for each in threading.enumerate() if isinstance(each, threading.Timer)]
        assert all(each.finished.is_set() for each in timers)


def test_it_is_ended_where_the_block_raises(stands_in: StandsIn) -> None:
    folder, commands = stands_in('say("ready"); wait()'), list[ServeCommand]()

    def block() -> None:
        with serve_command(folder, folder) as command:
            commands.append(command)
            raise KeyError("of the test")

    with pytest.raises(KeyError, match="of the test"):
        block()
    assert commands[0].process.returncode == -signal.SIGTERM
    assert commands[0].log not in LIVE


def test_one_that_has_ended_in_the_block_is_no_error(stands_in: StandsIn) -> None:
    folder = stands_in('say("ready")')
    with serve_command(folder, folder) as command:
        command.process.wait()
    assert command.process.returncode == 0


@pytest.mark.parametrize("says", ["", "not yet"])
def test_one_that_does_not_become_ready_raises_with_the_end_of_its_log(stands_in: StandsIn, says: str) -> None:
    folder = stands_in(f'sys.stderr.write("of old" + "." * {module.TAIL} + "no port is free"); print({says!r})')
    end = r"did not become ready.*\n\.+no port is free$"
    with pytest.raises(RuntimeError, match=end), serve_command(folder, folder):
        raise AssertionError("the block begins")
    assert folder / "server.log" not in LIVE


def test_one_that_says_nothing_is_killed(stands_in: StandsIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READY_S", 0.0)
    folder = stands_in("wait()")
    with pytest.raises(RuntimeError, match="did not become ready"), serve_command(folder, folder):
        raise AssertionError("the block begins")


def test_one_that_does_not_end_by_sigterm_is_killed_and_that_is_an_error(
    stands_in: StandsIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_S", 0.0)
    folder, commands = stands_in('signal.signal(signal.SIGTERM, signal.SIG_IGN); say("ready"); wait()'), []
    with pytest.raises(subprocess.TimeoutExpired), serve_command(folder, folder) as command:
        commands.append(command)
    assert commands[0].process.returncode == -signal.SIGKILL
    assert commands[0].log not in LIVE


# -- its processes


def test_its_processes_are_told_by_what_they_run(stands_in: StandsIn) -> None:
    """Of tritonserver's two the first has ended and waits to be reaped, as one does that is about to be restarted."""
    folder = stands_in(
        f"""
        ended = child("tritonserver", "-c", "exit")
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        server = child("/opt/bin/tritonserver", "-c", WAIT)
        controller = child("python", "-c", WAIT, "{MODULE}")
        stub = child("stub", folder + "/minilm/1/model.py", executable=folder + "/fmplex_stub")
        print(json.dumps([server.pid, controller.pid, stub.pid]), file=sys.stderr, flush=True)
        say("ready")
        wait()
        """
    )
    model = folder / "minilm" / "1" / "model.py"
    model.parent.mkdir(parents=True)
    model.write_text(WAIT)
    (folder / "fmplex_stub").symlink_to("/bin/sh")
    with serve_command(folder, folder) as command:
        server, controller, stub = json.loads(command.log_tail())
        assert command.tritonserver is not None
        assert command.controller is not None
        found = command.stub("minilm")
        assert found is not None
        assert (command.tritonserver.pid, command.controller.pid, found.pid) == (server, controller, stub)
        assert command.stub("another") is None


def test_processes_that_are_not_there(stands_in: StandsIn) -> None:
    folder = stands_in('other = child("/opt/tritonserver/bin/other", "-c", WAIT); say("ready"); wait()')
    with serve_command(folder, folder) as command:
        assert (command.tritonserver, command.controller, command.stub("minilm")) == (None, None, None)
