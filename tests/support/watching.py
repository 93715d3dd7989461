"""A real server with the process of its controller beside it, and what both are asked in tests."""

from __future__ import annotations

import json
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentences import sentence
from typer.testing import CliRunner

from fmplex import Client
from fmplex.cli.app import app
from fmplex_backend.status import BackboneStatus
from fmplex_controller.api.options import ApiOptions
from fmplex_controller.sidecar.process import SidecarProcess
from testing.clients import Question
from testing.servers import Serving

# A directory of the repository may have any name that a file system takes.
HOSTILE = "<img src=x onerror=document.title='broken'>"
TASKS = ("plain", "adapted", HOSTILE)


@dataclass
class Rig:
    """A server, the process of its controller, and where that tells and records."""

    server: Serving
    sidecar: SidecarProcess
    api: ApiOptions
    records: Path

    @property
    def url(self) -> str:
        """Of the API."""
        return f"http://127.0.0.1:{self.api.port}"

    def get(self, path: str) -> Any:
        """What the API answers."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
            return json.load(answer)

    def post(self, path: str) -> Any:
        """With the server's control key."""
        headers = {"Authorization": f"Bearer {self.server.server.control_key.value}"}
        request = urllib.request.Request(f"{self.url}{path}", method="POST", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def command(self, *words: str) -> str:
        """What `fmplex` prints."""
        found = CliRunner().invoke(
            app,
            [*words, "--repository", str(self.server.repository), "--server", self.server.grpc_url],
            env={"FMPLEX_RECORDS": str(self.records)},
        )
        assert found.exit_code == 0, found.output
        return found.stdout

    def status(self) -> BackboneStatus:
        """What the backbone tells itself."""
        with Client(self.server.grpc_url, timeout=10) as client:
            return client.status("minilm")

    def is_back(self, former: int) -> bool:
        """Whether another process of the backbone serves."""
        stub = self.server.stubs().get("minilm")
        return stub is not None and stub.pid != former and self.server.has(TASKS[0])

    def tells(self) -> bool:
        """Whether the API does, of a backbone that serves."""
        try:
            return bool(self.get("/v1/status")["backbones"][0]["state"] == "serving")
        except (OSError, IndexError):
            return False


class Load:
    """Three clients, a task each, whose texts are never the same twice: rows with equal texts would run once."""

    def __init__(self, server: Serving) -> None:
        self.server, self.done, self.answers = server, threading.Event(), 0

    def __enter__(self) -> Load:
        self._pool = ThreadPoolExecutor(len(TASKS))
        self._asking = [self._pool.submit(self._ask, number) for number in range(len(TASKS))]
        return self

    def __exit__(self, *raised: object) -> None:
        self.done.set()
        for each in self._asking:
            each.result()
        self._pool.shutdown()

    def _ask(self, number: int) -> None:
        seed = 1000 * number
        with self.server.client() as client:
            while not self.done.is_set():
                seed += 4
                texts = tuple(sentence(20, seed + row) for row in range(4))
                failed = client.ask(Question(TASKS[number], texts), timeout=4).error
                self.answers += not failed
                if failed:
                    self.done.wait(0.2)
