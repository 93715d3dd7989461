"""A server at an address: what is sent to it is sent again, where that may help, until a deadline."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from tritonclient.utils import InferenceServerException

from fmplex.client.control import METHODS, closed_to, control_headers
from fmplex.client.deadline import Deadline
from fmplex.client.problems import LATE, LONGER, connection_problem, server_problem
from fmplex.client.transport import Transport
from fmplex.client.wire import Address, backoff, is_unloaded
from fmplex_backend.errors import ControlClosed, DeadlineExceeded, ServerProblem, Unreachable

RETRIES = 4
LAST_TRY_S = 0.05  # before the deadline: with less time left, nothing is sent again
T = TypeVar("T")


class Connection:
    """Sends requests by a transport, and raises what goes wrong as ServerProblems.

    Args:
        retries: how often a request is sent again; None: until its deadline, where that is known to help.
        headers: sent with every request.
        control_key: the server's; None: what this host has for it.
    """

    def __init__(
        self,
        address: Address,
        transport: Transport,
        *,
        retries: int | None,
        headers: dict[str, str] | None,
        control_key: str | None,
    ) -> None:
        self.address, self.transport = address, transport
        self.retries, self.headers = retries, headers
        self._control_key = control_key
        self._answered = False  # whether a server has ever answered at this address

    @property
    def control_headers(self) -> dict[str, str]:
        """The headers that loading, unloading and listing models need, for other clients too; read anew each time.

        Raises ControlClosed where the key given is none that a header can carry.
        """
        return {**control_headers(self.address, self._control_key), **(self.headers or {})}

    async def send(self, method: str, arguments: Mapping[str, Any], deadline: Deadline) -> Any:
        """The server's answer to a method of tritonclient's InferenceServerClient."""
        return await self._retrying(partial(self._send_once, method, arguments, deadline), deadline)

    async def stream(self, request: Any, deadline: Deadline) -> tuple[Any, AsyncGenerator[Any, None]]:
        """The first response to a ModelInferRequest, and those that follow, for `next`."""
        return await self._retrying(partial(self._open_stream, request, deadline), deadline)

    async def next(self, responses: AsyncGenerator[Any, None], deadline: Deadline) -> Any:
        """The next response of a stream; None after the last."""
        with self._problems(deadline):
            response = await anext(responses, None)
            self._answered = True
            return response

    async def _retrying(self, call: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
        """Try again, after a pause, what may succeed then; raises the last error."""
        pauses, retries, before = backoff(), 0, ""
        while True:
            try:
                return await self._once(call, deadline)
            except DeadlineExceeded as error:
                raise DeadlineExceeded(f"{error}{before}. {LONGER}", error.status) from None
            except ServerProblem as error:
                left = math.inf if deadline.remaining is None else deadline.remaining - LAST_TRY_S
                if retries >= self._most_retries(error, deadline) or left <= 0:
                    raise
                before = f"; the try before: {error}"
            retries += 1
            await self.transport.sleep(min(next(pauses), left))

    def _most_retries(self, error: ServerProblem, deadline: Deadline) -> float:
        """Nobody at an address that never answered is a mistake in it more often than a server that starts."""
        if error.again == "never":
            return 0
        if self.retries is None and deadline.at is not None and (error.again == "later" or self._answered):
            return math.inf
        return RETRIES if self.retries is None else self.retries

    async def _once(self, call: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
        """A server that goes down answers for seconds that it has no such model: it counts as unreachable."""
        try:
            return await call()
        except ServerProblem as error:
            if is_unloaded(error) and not await self.is_ready(deadline):
                raise Unreachable(f"{self.address.url}: the server is going down: {error}", "UNAVAILABLE") from None
            raise

    async def is_ready(self, deadline: Deadline) -> bool:
        """Whether the server answers, and says that it is ready."""
        try:
            return bool(await self._send_once("is_server_ready", {}, deadline))
        except ServerProblem:
            return False

    async def _send_once(self, method: str, arguments: Mapping[str, Any], deadline: Deadline) -> Any:
        headers = self.control_headers if method in METHODS else self.headers
        try:
            with self._problems(deadline):
                answer = await self.transport.send(method, {**arguments, "headers": headers}, deadline.remaining)
                self._answered = True
                return answer
        except ControlClosed as error:
            raise closed_to(self.address.url, headers, error.status) from None

    async def _open_stream(self, request: Any, deadline: Deadline) -> tuple[Any, AsyncGenerator[Any, None]]:
        """The first response, and those that follow."""
        with self._problems(deadline):
            responses = self.transport.stream(request, self.headers, deadline.remaining)
        first = await self.next(responses, deadline)
        if first is None:
            raise ServerProblem(f"{self.address.url}: {request.model_name!r} has sent no answer")
        return first, responses

    @contextmanager
    def _problems(self, deadline: Deadline) -> Iterator[None]:
        """Raise what a transport raises as ServerProblems; nothing is sent once the deadline has passed."""
        try:
            if deadline.passed:
                raise TimeoutError
            yield
        except InferenceServerException as error:
            problem = server_problem(error, self.address)
            self._answered |= not isinstance(problem, (DeadlineExceeded, Unreachable))
            raise problem from None
        except TimeoutError:
            raise DeadlineExceeded(f"{self.address.url}: {LATE}", "DEADLINE_EXCEEDED") from None
        except OSError as error:
            raise connection_problem(str(error), self.address) from None
