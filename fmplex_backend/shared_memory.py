"""The shared memory through which Triton and a model's process exchange tensors."""

from __future__ import annotations

import logging
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
SELF = Path("/proc/self")
log = logging.getLogger("fmplex")


def unlink_region() -> list[Path]:
    """Remove the name of the region that Triton has started this process with; returns what it has removed.

    Both use the region, and make it larger, by descriptors that are open. By its name, which Triton tells clients when
    the region is full, a client could register it and write into it.
    """
    arguments = (SELF / "cmdline").read_text(errors="replace").split("\0")
    regions = {SHARED_MEMORY / name for name in arguments if name and "/" not in name}
    opened = regions & {file.readlink() for file in (SELF / "fd").iterdir() if file.is_symlink()}
    unlinked = []
    for region in opened:
        try:
            region.unlink()
            unlinked.append(region)
        except OSError as error:
            log.warning("%s keeps its name, by which clients may register it: %s", region, error)
    return unlinked
