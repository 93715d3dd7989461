"""The server, as far as the controller needs it: what is loaded, loading and unloading, and what a backbone tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from fmplex.client.control import closed_to
from fmplex.client.problems import server_problem
from fmplex.client.sync import Client
from fmplex.client.wire import Address
from fmplex_backend.errors import ControlClosed, DeadlineExceeded, ServerProblem, SetupProblem, Unreachable
from fmplex_backend.status import BackboneStatus
from fmplex_controller.sidecar.seen import Miss

ASK_S = 10.0  # for answers that take milliseconds
LOAD_S = 900.0  # for large backbones
UNLOAD_S = 60.0
# Of a dead or stopped process the server says so one second after a request, and a second later for each before it.
PROBE_S = 1.5
# Where the process has been seen to end: what takes its place, as in a load of its changed directory, answers sooner.
ENDED_S = 0.7
# Probes in a row that are enough: a machine may be so slow for a moment that a process misses some.
DEAD, SILENT = 2, 10

T = TypeVar("T")


class Triton:
    """A server, over gRPC: over HTTP a load blocks the other requests of a worker. Any thread.

    Calls raise ServerProblem; DeadlineExceeded and Unreachable where the server itself does not answer.
    """

    def __init__(self, url: str, control_key: str | None = None) -> None:
        address = Address.of(url)
        if address.http:
            raise SetupProblem(f"{url}: models are controlled over gRPC. Give its gRPC port, e.g. localhost:8001")
        self.url = address.url
        self._address = address
        self._client = Client(url, retries=0, control_key=control_key)
        self._raw: Any = grpcclient.InferenceServerClient(address.host, ssl=address.ssl)

    @property
    def control_key(self) -> str:
        """The server's key, as far as it is known; "" where there is none, as of an open server."""
        return next(iter(self._client.control_headers.values()), "")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._raw.close()

    def loaded(self) -> set[str]:
        """Names of the models that are ready.

        By the statistics: the index leaves out those whose directory is gone, and cannot be listed beside some names.
        """
        found = self._call(lambda: self._raw.get_inference_statistics(client_timeout=ASK_S))
        return {model.name for model in found.model_stats}

    def load(self, name: str) -> None:
        """Load a model; nothing happens to one whose files are as they were when it was loaded."""
        headers = self._client.control_headers
        self._call(lambda: self._raw.load_model(name, headers=headers, client_timeout=LOAD_S))

    def unload(self, name: str) -> None:
        """Take a model from its clients; requests that it has are still answered, if its process does."""
        headers = self._client.control_headers
        self._call(lambda: self._raw.unload_model(name, headers=headers, client_timeout=UNLOAD_S))

    def status(self, backbone: str, task: str = "", timeout: float = ASK_S) -> BackboneStatus:
        """What a backbone tells of all its tasks, or of one after it has read the repository again."""
        return self._client.status(backbone, task, timeout=timeout)

    def prefetch(self, backbone: str, task: str, timeout: float = ASK_S) -> BackboneStatus:
        """Let a backbone read a task that is about to be bound to it, and keep its tag for it.

        `prefetched` says why it would refuse it, "" where it would not, and None where it has not read it.
        """
        return self._client.status(backbone, task, timeout=timeout, prefetch=True)

    def probe(self, backbone: str, timeout: float = PROBE_S) -> BackboneStatus | Miss:
        """What a backbone tells, or that its process does not answer.

        Raises ServerProblem where nothing is known about the process.
        """
        try:
            return self._client.status(backbone, timeout=timeout)
        except Unreachable:
            raise
        except DeadlineExceeded:
            self._call(lambda: self._raw.is_server_live(client_timeout=PROBE_S))  # else it is the server that is slow
            return Miss("its process does not answer", SILENT)
        except ServerProblem as error:
            if "not healthy" not in str(error):
                raise
            return Miss(f"its process is dead or stands still ({str(error).rstrip('.')})", DEAD)

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except InferenceServerException as error:
            problem = server_problem(error, self._address)
            if isinstance(problem, ControlClosed):
                raise closed_to(self.url, self._client.control_headers, problem.status) from None
            raise problem from None
