"""Replaces itself with a command, having asked the kernel for SIGTERM when its parent dies.

    python launcher.py PARENT_PID COMMAND [ARGUMENT ...]

A process of its own rather than Popen's `preexec_fn`, which is unsafe in a process with threads (gRPC's).
Imports nothing of FMplex: it runs isolated. The control key comes as a variable, which other users cannot read as they
can arguments, and is put into the command's at the last moment: tritonserver takes it in no other way.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
VARIABLE = "FMPLEX_CONTROL_KEY"
KEY = "{control key}"  # stands for it in the arguments of the command


def main() -> None:
    """Run the command in this process."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if any(KEY in argument for argument in command):
        key = os.environ.pop(VARIABLE, "")  # the command and its models do not inherit it
        command = [argument.replace(KEY, key) for argument in command]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the kernel was asked
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
