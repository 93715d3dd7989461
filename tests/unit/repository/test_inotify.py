"""The descriptor by which changes are told, at the end of the process."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import atexit, os
from fmplex_backend.repository.inotify import Inotify
atexit.register(lambda: print(os.fstat(inotify.descriptor).st_size))  # called after those that are registered later
inotify = Inotify()
"""


def test_it_stays_open_for_threads_that_still_read() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("0\n", "")
