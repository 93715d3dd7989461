"""Where FMplex keeps what outlives its processes on this host: control keys, and what controllers record."""

from __future__ import annotations

import os
from pathlib import Path


def state_folder() -> Path:
    """`fmplex` in XDG_STATE_HOME, else in ~/.local/state; raises RuntimeError where there is no home."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    return base / "fmplex"
