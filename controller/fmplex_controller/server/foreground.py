"""Runs a server in the foreground of a command: signals drain it, and the command ends when it ends."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Protocol

from fmplex_backend.errors import NotReady, ServerExited, SetupProblem
from fmplex_controller.records.journal import Journal
from fmplex_controller.server.ends import Ends
from fmplex_controller.server.process import Server

WAIT_S = 0.5
GRACE_S = 10.0  # beyond its own time limit, to unload its models


class Beside(Protocol):
    """A process beside the server."""

    def start(self) -> None:
        """Start it."""

    def keep(self) -> None:
        """Start it again where it has ended; called every half second."""

    def stop(self) -> None:
        """End it."""


class Companion(Beside, Protocol):
    """Such as its controller; what becomes of the server is told to its journal."""

    journal: Journal


def serve(
    server: Server,
    when_ready: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
    companion: Companion | None = None,
    beside: Sequence[Beside] = (),
) -> int:
    """Serve until SIGTERM or SIGINT, or until `when_ready` stops the server; the command's exit status.

    A server that is stopped and goes beyond its own time limit is killed: Triton 2.51 may hang then, for good. With a
    companion, a server that ends unasked is started again, unless it does so again and again. What is `beside` it runs
    from its start to its end, whatever becomes of it between.

    Raises ServerExited where the server ended unasked, NotReady where it has nothing to serve.
    """
    journal = Journal() if companion is None else companion.journal
    with _signals_stop(server):
        try:
            server.start()
            for each in beside:
                each.start()
            states = server.wait_ready()
            if states and not any(state.ready for state in states):
                raise NotReady(f"not one model of {server.options.repository} can be served; the reasons are above")
            when_ready()
            if companion is None:
                return _status(server, _wait(server, clock, beside))
            companion.start()
            ready = sum(state.ready for state in states)
            journal.tell("server-started", "", f"{ready} of {len(states)} models are ready")
            return _serve_again(server, clock, companion, beside)
        except ServerExited:
            if not server.stopping:
                raise
            return _status(server, _wait(server, clock))
        finally:
            if companion is not None:
                companion.stop()
            server.stop()
            for each in beside:
                each.stop()
            journal.tell("server-stopped")
            journal.close()


def _serve_again(server: Server, clock: Callable[[], float], companion: Companion, beside: Sequence[Beside]) -> int:
    """Wait for the server, and start it again as often as it may end."""
    ends, has_ended, journal = Ends(), False, companion.journal
    while True:
        try:
            if has_ended:
                _restart(server)
                server.wait_ready()
                print("fmplex: tritonserver serves again", file=sys.stderr, flush=True)
                journal.tell("server-restarted", "", "it had ended unasked")
            return _status(server, _wait(server, clock, (companion, *beside)))
        except ServerExited as error:
            pause = None if server.stopping else ends.add(clock())
            reason = str(error).splitlines()[0]
            if pause is None:
                journal.tell("server-ended", "", reason, "it was told to stop" if server.stopping else "given up")
                raise
            journal.tell("server-ended", "", reason, "it is started again")
            print(f"fmplex: {reason} It is started again", file=sys.stderr, flush=True)
            has_ended = True
            _pause(server, pause)


def _restart(server: Server) -> None:
    try:
        server.restart()
    except (SetupProblem, OSError) as error:  # its repository may be away, or a port taken, for a moment
        raise ServerExited(f"tritonserver could not be started: {str(error).rstrip('.')}.") from error


def _pause(server: Server, seconds: float) -> None:
    """Wait, unless the server is to stop."""
    deadline = time.monotonic() + seconds
    while not server.stopping and time.monotonic() < deadline:
        time.sleep(min(WAIT_S, seconds))


def _wait(server: Server, clock: Callable[[], float], beside: Sequence[Beside] = ()) -> int:
    """Wait in short intervals: a signal that arrives just before the system call would not interrupt a long wait."""
    since: float | None = None  # it has been told to end
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return server.wait(WAIT_S)
        if not server.stopping:
            for each in beside:
                each.keep()
            continue
        limit = server.options.exit_timeout + GRACE_S
        since = clock() if since is None else since
        if clock() - since > limit:
            print(f"fmplex: tritonserver does not end within {limit:g} s: killed", file=sys.stderr, flush=True)
            server.kill()


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
