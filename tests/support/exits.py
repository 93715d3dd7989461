"""How processes ended that nobody has waited for."""

from __future__ import annotations

from pathlib import Path

import psutil


def exit_status(process: psutil.Process) -> int | None:
    """The exit status of a process that its parent has not waited for; None while it lives."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[-1]) >> 8 if fields[0] == "Z" else None
