"""A controller with elasticity beside a real server, and clients that keep its backbone at work."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from fmplex_backend.repository.reader import RepositoryReader
from fmplex_controller.records.events import Event
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar.adaptation import ElasticOptions
from fmplex_controller.sidecar.controller import Controller
from fmplex_controller.sidecar.elastic import Settings
from fmplex_controller.sidecar.planning import Limits
from fmplex_controller.sidecar.triton import Triton
from testing.servers import Serving

TEXT = "a text of some length that keeps a backbone at work for a while " * 4
CLIENTS = 16
ROOM = Limits(memory=1 << 40, parallel=8)  # as if every backbone had cores of its own


@contextmanager
def elastic(server: Serving, settings: Settings) -> Iterator[list[Event]]:
    """A controller beside the server while the block lasts; what it tells."""
    triton, stop, journal, told = Triton(server.grpc_url), threading.Event(), Journal(), list[Event]()
    journal.listeners.append(told.append)
    controller = Controller(server.repository, triton, journal=journal, elastic=ElasticOptions(settings, ROOM))
    thread = threading.Thread(target=controller.run, args=(stop,))
    thread.start()
    try:
        yield told
    finally:
        stop.set()
        controller.wake()
        thread.join(30)
        triton.close()
    assert not thread.is_alive()


@contextmanager
def asked(server: Serving, tasks: Sequence[str]) -> Iterator[list[str]]:
    """Clients ask the tasks in turn while the block lasts; the errors they get."""
    stop, numbers, problems = threading.Event(), itertools.count(), list[str]()

    def ask() -> None:
        with server.client() as client:
            while not stop.is_set():
                number = next(numbers)
                answer = client.ask_one(tasks[number % len(tasks)], f"{number} {TEXT}")
                if answer.error:
                    problems.append(answer.message)

    with ThreadPoolExecutor(CLIENTS) as pool:
        for _ in range(CLIENTS):
            pool.submit(ask)
        try:
            yield problems
        finally:
            stop.set()


def places(server: Serving) -> dict[str, str]:
    """The backbone of each task."""
    return {name: backbone for name, (backbone, _) in RepositoryReader(server.repository).tasks().items()}
