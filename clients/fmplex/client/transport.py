"""The way to a server: what `Client` and `AsyncClient` each have one of."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Transport(Protocol):
    """The way to one server, and the time it takes."""

    def clock(self) -> float:
        """Monotonic seconds."""

    async def send(self, method: str, arguments: Mapping[str, Any], timeout: float | None) -> Any:
        """Call a method of tritonclient's InferenceServerClient.

        Raises InferenceServerException for the server's (or gRPC's) errors, TimeoutError when `timeout` seconds are
        over, and another OSError where the connection fails.
        """

    def stream(
        self, request: Any, headers: Mapping[str, str] | None, timeout: float | None
    ) -> AsyncGenerator[Any, None]:
        """Send a ModelInferRequest; the InferResults of its reply, as they come. Raises as `send` does.

        Closing the generator cancels the request. Over HTTP it raises TaskProblem.
        """

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""

    async def gather(self, calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """What each call returns, in their order; side by side where the transport can do so."""

    async def close(self) -> None:
        """Close the connections."""
