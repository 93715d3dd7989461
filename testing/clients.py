"""A gRPC client: plain tritonclient, every call with a timeout."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from fmplex.client.control import control_headers
from fmplex.client.wire import Address

TIMEOUT = 60.0  # seconds; a call that takes longer hangs
Outputs = dict[str, npt.NDArray[Any]]
Parameters = dict[str, str | int | bool]


@dataclass(frozen=True, slots=True)
class Question:
    """A request of one or more texts."""

    task: str
    texts: tuple[Any, ...]  # str or bytes; for clients that know other inputs, items of any family
    parameters: Parameters | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The outputs, each with the batch as its first dim, or the error; and how long the call took."""

    outputs: Outputs = field(default_factory=dict)
    error: InferenceServerException | None = None
    seconds: float = 0.0

    @property
    def batch_items(self) -> int:
        """Rows of the batch that the request was in, by its receipt."""
        return int(self.outputs["usage"][0, 2])

    @property
    def status(self) -> str:
        """The gRPC status of the error, such as UNAVAILABLE; "" where there is none."""
        return str(self.error.status()).removeprefix("StatusCode.") if self.error else ""

    @property
    def message(self) -> str:
        """The error's text; "" where there is none."""
        return str(self.error.message()) if self.error else ""

    def good(self) -> Outputs:
        """The outputs; raises the error where there is one."""
        if self.error:
            raise self.error
        return self.outputs


def text_tensor(types: ModuleType, texts: Sequence[str | bytes]) -> Any:
    """The input TEXT, [n, 1], of tritonclient's gRPC or HTTP module."""
    cells = [[text if isinstance(text, bytes) else text.encode()] for text in texts]
    tensor = types.InferInput("TEXT", [len(cells), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(cells, dtype=np.object_).reshape(-1, 1))
    return tensor


class GrpcClient:
    """A channel that any number of threads may use."""

    def __init__(self, url: str) -> None:
        self.raw = grpcclient.InferenceServerClient(url)
        self._url = url

    @property
    def control_headers(self) -> dict[str, str]:
        """What model control must carry."""
        return control_headers(Address.of(self._url), None)

    def __enter__(self) -> GrpcClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.raw.close()

    def ask(self, question: Question, timeout: float = TIMEOUT) -> Answer:
        """Ask and wait; an error of the server is returned, not raised."""
        start = time.monotonic()
        tensor = text_tensor(grpcclient, question.texts)
        try:
            result = self.raw.infer(
                question.task, [tensor], client_timeout=timeout, parameters=dict(question.parameters or {})
            )
        except InferenceServerException as error:
            return Answer(error=error, seconds=time.monotonic() - start)
        names = [output.name for output in result.get_response().outputs]
        return Answer({name: result.as_numpy(name) for name in names}, seconds=time.monotonic() - start)

    def load(self, model: str) -> None:
        """Model control; raises what Triton says."""
        self.raw.load_model(model, client_timeout=TIMEOUT, headers=self.control_headers)

    def unload(self, model: str) -> None:
        """Model control; raises what Triton says."""
        self.raw.unload_model(model, client_timeout=TIMEOUT, headers=self.control_headers)

    def ask_one(self, task: str, *texts: str | bytes, **parameters: str | int | bool) -> Answer:
        """Ask a task about these texts, with request parameters."""
        return self.ask(Question(task, texts, parameters))
