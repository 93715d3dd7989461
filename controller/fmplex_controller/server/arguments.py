"""Overwrites a secret among the arguments of a process of ours, which every user of the machine may read."""

from __future__ import annotations

from pathlib import Path

# Fields of /proc/PID/stat, counted from behind the command's name (see proc(5)).
ARG_START, ARG_END = 45, 46


def hide(pid: int, before: str, secret: str) -> bool:
    """Put stars over the secret in /proc/PID/cmdline wherever it follows `before`; whether it is to be seen no more.

    The program must have read its arguments already: it would see the stars too.
    """
    wanted = f"{before}{secret}".encode()
    process = Path("/proc", str(pid))
    try:
        if wanted in (process / "cmdline").read_bytes():
            _overwrite(process, wanted, len(before.encode()))
        return wanted not in (process / "cmdline").read_bytes()
    except OSError:  # the process has ended, or the kernel lets nobody write into another process
        return not process.exists()


def _overwrite(process: Path, wanted: bytes, keep: int) -> None:
    fields = (process / "stat").read_text(errors="replace").rsplit(")", 1)[1].split()
    start, end = int(fields[ARG_START]), int(fields[ARG_END])
    with (process / "mem").open("r+b", buffering=0) as memory:
        memory.seek(start)
        arguments = memory.read(end - start)
        at = arguments.find(wanted)
        while at >= 0:
            memory.seek(start + at + keep)
            memory.write(b"*" * (len(wanted) - keep))
            at = arguments.find(wanted, at + len(wanted))
