"""`python -m fmplex_controller.sidecar REPOSITORY SERVER`: the controller as a process, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from fmplex_backend.errors import FmplexError
from fmplex_controller.api.options import ApiOptions
from fmplex_controller.records.folder import records_folder
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar.adaptation import ElasticOptions
from fmplex_controller.sidecar.controller import Controller
from fmplex_controller.sidecar.triton import Triton

if TYPE_CHECKING:
    from fmplex_controller.api.serving import ApiServer

log = logging.getLogger("fmplex.controller")


def run(
    repository: Path,
    server: str,
    control_key: str | None = None,
    records: Path | None = None,
    api: ApiOptions | None = None,
    elastic: ElasticOptions | None = None,
) -> None:
    """Control a server in the foreground; its key is found as every client finds it, where none is given.

    Args:
        records: directory of the log of events and the ledger of usage, in the place of the usual one.
        api: where the HTTP API listens; None for none.
        elastic: what may be done about overload; None: nothing.

    Raises SetupProblem for an address of HTTP.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="fmplex controller: %(message)s")
    triton = Triton(server, control_key)
    journal = Journal.opened(records_folder(repository, server, records), repository, server)
    controller, stop = Controller(repository, triton, journal=journal, elastic=elastic), threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        controller.wake()

    api_server = _api_server(controller, api)
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    journal.tell("controller-started", "", f"for the server {server} on {repository}")
    try:
        controller.run(stop)
    finally:
        if api_server is not None:
            api_server.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
        triton.close()
        journal.tell("controller-stopped")
        journal.close()


def _api_server(controller: Controller, options: ApiOptions | None) -> ApiServer | None:
    if options is None:
        return None
    from fmplex_controller.api.serving import ApiServer, ControllerSource

    server = ApiServer(ControllerSource(controller), options)
    server.start()
    log.info("its API is at http://%s:%d", options.host, options.port)
    return server


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m fmplex_controller.sidecar")
    parser.add_argument("--records", type=Path)
    parser.add_argument("--api-host", default="127.0.0.1")
    parser.add_argument("--api-port", type=int, help="without it there is no API")
    parser.add_argument("--elastic", type=ElasticOptions.of, help="as fmplex serve --elastic gives it")
    parser.add_argument("repository", type=Path)
    parser.add_argument("server")
    given = parser.parse_args()
    try:
        api = ApiOptions.given(given.api_host, given.api_port) if given.api_port else None
        run(given.repository, given.server, records=given.records, api=api, elastic=given.elastic)
    except FmplexError as error:
        print(f"fmplex controller: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
