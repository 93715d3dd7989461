"""Asks tasks on a server, over gRPC or HTTP: texts in, Python objects out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from types import TracebackType
from typing import Any

import numpy.typing as npt
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from google.protobuf import json_format
from tritonclient.utils import InferenceServerException

from fmplex.errors import DeadlineExceeded, ServerProblem, TaskProblem
from fmplex.results import Result, results
from fmplex.wire import Address, Interface, asked, portions, problem, waits, worth_another_try

POLL_S = 0.02
UNLIMITED_S = 24 * 3600.0


class Client:
    """A server.

    Args:
        url: "localhost:8001" for gRPC, "http://localhost:8000" for HTTP (grpcs:// and https:// with TLS).
        timeout: seconds for a call, tries and waits included; none by default.
        retries: further tries where the server is not available, with a growing wait between.
        headers: go with every call.

    It may be used by several threads over gRPC; over HTTP each needs its own.
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        timeout: float | None = None,
        retries: int = 4,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.url, self.timeout, self.retries, self.headers = url, timeout, retries, headers
        address = Address.of(url)
        self._module: Any = httpclient if address.http else grpcclient
        options = {"network_timeout": timeout or UNLIMITED_S, "connection_timeout": 60.0} if address.http else {}
        self._client: Any = self._module.InferenceServerClient(address.host, ssl=address.ssl, **options)
        self._http = address.http
        self._interfaces: dict[str, Interface] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is on its way, and the connection."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._client.close()

    # -- asking

    def predict(
        self, task: str, texts: str | Sequence[Any], *, timeout: float | None = None, slo_ms: float | None = None
    ) -> list[Result]:
        """What a task says to each text (or row of numbers); more than the server takes at once go in several requests.

        Raises DeadlineExceeded, Unreachable, or ServerProblem with the server's own words.
        """
        several = [texts] if isinstance(texts, str) else list(texts)
        about, deadline = self.interface(task), self._deadline(timeout)
        found: list[Result] = []
        for part in portions(several, about.max_batch_size):
            outputs = self._infer(about, part, deadline, slo_ms)
            found += results(about.kind, about.labels, part, outputs)
        return found

    def submit(self, task: str, texts: str | Sequence[Any], *, timeout: float | None = None) -> Future[list[Result]]:
        """`predict` in the background; the future's `cancel` gives up what has not begun."""
        if self._http:
            raise TaskProblem("submit needs gRPC: an HTTP connection is for one thread. Use Client('host:8001')")
        self._pool = self._pool or ThreadPoolExecutor(16, "fmplex-client")
        return self._pool.submit(self.predict, task, texts, timeout=timeout)

    def outputs(self, task: str, texts: Sequence[Any], *, timeout: float | None = None) -> list[dict[str, Any]]:
        """The output tensors of each text."""
        about, deadline = self.interface(task), self._deadline(timeout)
        found: list[dict[str, Any]] = []
        for part in portions(list(texts), about.max_batch_size):
            tensors = self._infer(about, part, deadline, None)
            found += [{name: value[row] for name, value in tensors.items()} for row in range(len(part))]
        return found

    def interface(self, task: str) -> Interface:
        """A task's kind, labels and outputs, asked of the server once."""
        if task not in self._interfaces:
            answer = self._tried(
                lambda: self._client.get_model_config(task, headers=self.headers), self._deadline(None)
            )
            document = (
                answer if self._http else json_format.MessageToDict(answer.config, preserving_proto_field_name=True)
            )
            self._interfaces[task] = Interface.of(document)
        return self._interfaces[task]

    # -- model control

    def tasks(self) -> dict[str, str]:
        """State of every model in the repository, by name."""
        answer = self._tried(
            lambda: self._client.get_model_repository_index(headers=self.headers), self._deadline(None)
        )
        models = answer if self._http else json_format.MessageToDict(answer).get("models", [])
        return {model["name"]: model.get("state", "") for model in models}

    def load(self, task: str) -> None:
        """Let the server take up what changed on disk; a server that polls does so by itself."""
        self._interfaces.pop(task, None)
        try:
            self._client.load_model(task, headers=self.headers)
        except InferenceServerException as error:
            if "polling is enabled" not in str(error):
                raise problem(error, self.url) from None

    def unload(self, task: str) -> None:
        """Let the server forget a task."""
        self._interfaces.pop(task, None)
        try:
            self._client.unload_model(task, headers=self.headers)
        except InferenceServerException as error:
            if "polling is enabled" not in str(error):
                raise problem(error, self.url) from None

    def wait_for(self, task: str, condition: Callable[[], bool], timeout: float) -> None:
        """Until a task is there and `condition` holds; raises DeadlineExceeded with the server's last words."""
        deadline, said = time.monotonic() + timeout, "it answers, but not with this version"
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
            except ServerProblem as error:
                said = str(error)
            self._interfaces.pop(task, None)
            time.sleep(POLL_S)
        raise DeadlineExceeded(f"{self.url}: {task!r} is not served after {timeout:g} s: {said}")

    # -- one request

    def _infer(
        self, about: Interface, rows: Sequence[Any], deadline: float, slo_ms: float | None
    ) -> dict[str, npt.NDArray[Any]]:
        options = asked(self._module, about, rows, slo_ms) | {"headers": self.headers}

        def send() -> Any:
            left = deadline - time.monotonic()
            if not self._http and left < UNLIMITED_S:
                options["client_timeout"] = max(left, 1e-3)
            return self._client.infer(**options)

        answer = self._tried(send, deadline)
        return {name: answer.as_numpy(name) for name in about.outputs}

    def _tried(self, send: Callable[[], Any], deadline: float) -> Any:
        for wait in (*waits(self.retries), None):
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(f"{self.url}: no answer within the time given")
            try:
                return send()
            except InferenceServerException as error:
                if wait is None or not worth_another_try(error):
                    raise problem(error, self.url) from None
            except OSError as error:  # HTTP's transport raises its own
                if wait is None:
                    raise _unreachable(self.url, error) from None
            time.sleep(min(wait, max(0.0, deadline - time.monotonic())))
        raise AssertionError("the last try returns or raises")

    def _deadline(self, timeout: float | None) -> float:
        seconds = self.timeout if timeout is None else timeout
        return time.monotonic() + (10 * UNLIMITED_S if seconds is None else seconds)


def _unreachable(url: str, error: Exception) -> ServerProblem:
    late = "timed out" in str(error).lower()
    return problem(InferenceServerException(str(error), status="DEADLINE_EXCEEDED" if late else "UNAVAILABLE"), url)


def as_json_value(result: Result) -> dict[str, Any]:
    """A result as JSON has it."""
    document: dict[str, Any] = json.loads(json.dumps(asdict(result), default=lambda value: value.tolist()))
    return document
