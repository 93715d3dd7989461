"""Processes of backbones, where they run on this host and are visible to this process."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

STUB = "triton_python_backend_stub"
ENDED, STOPPED = ("", "Z", "X"), ("T", "t")  # states of a process, see `_state`


class Processes:
    """Those that backbones have named. In another container a number may be nobody's, or somebody else's."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}  # by backbone, those that have been seen to be its

    def named(self, backbone: str, pid: int) -> None:
        """A backbone has told that this is its process."""
        if self._known.get(backbone) != pid:
            self._known.pop(backbone, None)
            if is_stub(pid, backbone):
                self._known[backbone] = pid

    def has_ended(self, backbone: str) -> bool:
        """Whether its process has been seen, and has ended."""
        pid = self._known.get(backbone)
        return pid is not None and _state(pid) in ENDED

    def is_dead(self, backbone: str) -> bool:
        """Whether its process has been seen, and has ended or been stopped."""
        pid = self._known.get(backbone)
        return pid is not None and _state(pid) in (*ENDED, *STOPPED)


def end_process(pid: int, backbone: str) -> bool:
    """Kill the process of a backbone, if this is one; whether it was."""
    if not is_stub(pid, backbone):
        return False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
    return True


def is_stub(pid: int, backbone: str) -> bool:
    """Whether this is the process of a backbone, by its command line: STUB MODEL/VERSION/model.py ..."""
    try:
        arguments = Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    program = os.path.basename(os.fsdecode(arguments[0]))
    model = Path(os.fsdecode(arguments[1])) if len(arguments) > 1 else Path()
    return program == STUB and len(model.parents) > 1 and model.parents[1].name == backbone


def _state(pid: int) -> str:
    """As proc(5) has it; "" where there is no such process."""
    try:
        return Path("/proc", str(pid), "stat").read_text(errors="replace").rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return ""
