"""Serves the API from a thread of the controller's process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import uvicorn

from fmplex_backend.errors import SetupProblem
from fmplex_backend.repository.directory import set_unloaded
from fmplex_controller.api.app import make_app
from fmplex_controller.api.options import ApiOptions
from fmplex_controller.records.events import Event, latest_events
from fmplex_controller.records.usage import Usage, read_usage
from fmplex_controller.sidecar.board import Overview
from fmplex_controller.sidecar.controller import Controller
from fmplex_controller.sidecar.metrics import Metrics

log = logging.getLogger("fmplex.controller")

STOP_S = 3.0


class ControllerSource:
    """What the API tells, out of a controller and its records."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._metrics = Metrics(controller.board)
        controller.journal.listeners.append(self._metrics.told)

    @property
    def _folder(self) -> Path | None:
        """None where nothing is recorded, or not yet."""
        return self._controller.journal.folder

    def overview(self) -> Overview:
        """The server as it is."""
        return self._controller.board.overview()

    def events(self, since: datetime | None, model: str, most: int) -> Sequence[Event]:
        """The latest ones."""
        if self._folder is None:
            return []
        return latest_events(self._folder, most, since, model)

    def usage(self, since: datetime | None) -> Usage:
        """What tasks were charged; raises SetupProblem."""
        if self._folder is None:
            raise SetupProblem("this controller records nothing; its log says why")
        return read_usage(self._folder, None if since is None else since.timestamp())

    def metrics(self) -> bytes:
        """For Prometheus."""
        return self._metrics.text()

    def is_task(self, name: str) -> bool:
        """Whether the repository has this task."""
        return self._controller.board.is_task(name)

    def set_loaded(self, name: str, loaded: bool) -> None:
        """By the file that the controller goes by; raises OSError."""
        set_unloaded(self._controller.root / name, not loaded)
        self._controller.observer.changed({name})
        self._controller.wake()

    @property
    def control_key(self) -> str:
        """That of the server, "" where it wants none."""
        return self._controller.triton.control_key


class ApiServer:
    """Listens from `start` to `stop`."""

    def __init__(self, source: ControllerSource, options: ApiOptions) -> None:
        config = uvicorn.Config(
            make_app(source, options),
            host=options.host.strip("[]"),
            port=options.port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=1,
            limit_concurrency=64,
        )
        self._options = options
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="fmplex-api", daemon=True)

    def start(self) -> None:
        """Serve; a port that cannot be had is said in the log, and the controller goes on without."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._server.should_exit = True
        self._thread.join(STOP_S)

    def _run(self) -> None:
        try:
            self._server.run()
        except SystemExit:  # uvicorn's for a port that is taken, which it has said
            log.error("the API cannot be served at %s:%d", self._options.host, self._options.port)
        except Exception:
            log.exception("the API")
