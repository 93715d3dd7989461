"""`python -m fmplex_controller.openai SERVER`: OpenAI's API as a process, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from fmplex.client.wire import Address
from fmplex_backend.errors import FmplexError, SetupProblem
from fmplex_controller.openai.options import DEFAULT_BODY_MIB, DEFAULT_PORT, DEFAULT_TIMEOUT_S, OpenAiOptions


def run(server: str, options: OpenAiOptions, when_ready: Callable[[], None] = lambda: None) -> None:
    """Serve in the foreground; raises SetupProblem where it cannot listen, ServerProblem for no address."""
    address = Address.of(server)
    if address.http:
        raise SetupProblem(f"{server}: answers come in parts over gRPC. Give its gRPC port, e.g. localhost:8001")
    options.check()
    from fmplex_controller.openai.serving import server_of

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="fmplex openai: %(message)s")
    when_ready()
    for number in (signal.SIGTERM, signal.SIGINT):  # which uvicorn raises again once it has ended for one
        signal.signal(number, _end)
    server_of(address.url, options).run()


def _end(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m fmplex_controller.openai")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--keys", type=Path)
    parser.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT_S)
    parser.add_argument("--body-mib", type=float, default=DEFAULT_BODY_MIB)
    parser.add_argument("server")
    given = parser.parse_args()
    try:
        run(given.server, OpenAiOptions(given.port, given.host, given.keys, given.timeout, given.body_mib))
    except FmplexError as error:
        print(f"fmplex openai: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
