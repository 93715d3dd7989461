"""`python -m fmplex_controller.sidecar REPOSITORY SERVER`: the controller as a process, until SIGTERM or SIGINT."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from fmplex_backend.errors import FmplexError
from fmplex_controller.sidecar.controller import Controller
from fmplex_controller.sidecar.triton import Triton


def run(repository: Path, server: str, control_key: str | None = None) -> None:
    """Control a server in the foreground; its key is found as every client finds it, where none is given.

    Raises SetupProblem for an address of HTTP.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="fmplex controller: %(message)s")
    triton = Triton(server, control_key)
    controller, stop = Controller(repository, triton), threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        controller.wake()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        controller.run(stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        triton.close()


def main() -> int:
    """The exit status."""
    try:
        run(Path(sys.argv[1]), sys.argv[2])
    except FmplexError as error:
        print(f"fmplex controller: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
