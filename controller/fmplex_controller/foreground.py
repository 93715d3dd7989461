"""Runs a server in the foreground of a command: signals drain it, and its end is ours."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from fmplex_controller.errors import NotReady, ServerExited
from fmplex_controller.server import Server

SPELL_S = 0.5


def serve(server: Server, when_ready: Callable[[], None]) -> int:
    """Serve until SIGTERM or SIGINT, or until `when_ready` stops the server; the command's exit status.

    Raises ServerExited where the server ended unasked, NotReady where it has nothing to serve.
    """
    with _signals_stop(server):
        try:
            server.start()
            states = server.wait_ready()
            if states and not any(state.ready for state in states):
                raise NotReady(f"not one model of {server.options.repository} can be served; the reasons are above")
            when_ready()
            return _status(server, _wait(server))
        except ServerExited:
            if not server.stopping:
                raise
            return _status(server, _wait(server))
        finally:
            server.stop()


def _wait(server: Server) -> int:
    """Wait in short spells: a signal between Python's last look and the system call would not end a long one."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return server.wait(SPELL_S)


def _status(server: Server, code: int) -> int:
    if not server.stopping:
        raise server.exited(code)
    if code in (0, -signal.SIGTERM):  # while it loads, tritonserver has no handler and simply dies
        return 0
    print(f"fmplex: tritonserver did not drain: it ended with status {code}", file=sys.stderr)
    return 1


@contextlib.contextmanager
def _signals_stop(server: Server) -> Iterator[None]:
    """The first SIGTERM or SIGINT drains the server, the second kills it."""

    def stop(number: int, _frame: FrameType | None) -> None:
        if not server.started:
            sys.exit(0)
        if server.stopping:
            server.kill()
        else:
            print(f"fmplex: {signal.Signals(number).name}: draining", file=sys.stderr, flush=True)
            server.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
