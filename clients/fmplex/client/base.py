"""What `Client` and `AsyncClient` share: everything but the transport.

The steps of a call are coroutines, so that each is written once. `AsyncClient` awaits them; `Client` runs them over
a transport that blocks, where they never suspend.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import numpy.typing as npt

from fmplex.client.connection import Connection
from fmplex.client.deadline import Deadline
from fmplex.client.groups import own_outputs, problems_in
from fmplex.client.problems import index_problem
from fmplex.client.results import Answers, joined, kind_of, result
from fmplex.client.status import (
    backbone_of,
    check_loaded,
    models_in,
    status_arguments,
    status_in,
    status_request,
    tasks_of,
)
from fmplex.client.streams import needs_grpc, stream_request, tensors_in
from fmplex.client.transport import Transport
from fmplex.client.wire import (
    Address,
    Interface,
    array_of,
    batches,
    infer_arguments,
    items_in,
)
from fmplex_backend.decoders.results import Result
from fmplex_backend.errors import DeadlineExceeded, ServerProblem, Unreachable
from fmplex_backend.interface import USAGE
from fmplex_backend.status import BackboneStatus, TaskStatus

POLL_S = 0.02
STREAM = "stream"  # a parameter: the client reads parts as they come
T = TypeVar("T")
Outputs = dict[str, npt.NDArray[Any]]


class BaseClient(ABC):
    """A server, its known interfaces, and what every call to it has in common."""

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        timeout: float | None = None,
        retries: int | None = None,
        headers: dict[str, str] | None = None,
        control_key: str | None = None,
    ) -> None:
        self._address = address = Address.of(url)
        self.url, self.timeout = address.url, timeout
        self._http = address.http
        # gRPC's answers are messages unless asked for as documents, which HTTP's always are.
        self._as_document = {} if address.http else {"as_json": True}
        self._interfaces: dict[str, Interface] = {}
        self._transport = self._connect(address)
        self._connection = Connection(
            address, self._transport, retries=retries, headers=headers, control_key=control_key
        )

    @abstractmethod
    def _connect(self, address: Address) -> Transport:
        """A transport; it opens its connections when it sends."""

    @property
    def control_headers(self) -> dict[str, str]:
        """The headers that loading, unloading and listing models need, for other clients too; read anew each time.

        Raises ControlClosed where the key given is none that a header can carry.
        """
        return self._connection.control_headers

    def _deadline(self, timeout: float | None) -> Deadline:
        """Of a call that begins now."""
        return Deadline.after(self.timeout if timeout is None else timeout, self._transport.clock)

    # -- calls

    async def _predict(
        self,
        task: str,
        texts: str | Sequence[Any],
        deadline: Deadline,
        parameters: Mapping[str, str],
        request_id: str = "",
    ) -> list[Result]:
        interface = await self._interface(task, deadline)
        items = items_in(interface.takes, texts)
        members = await self._members(interface, deadline)
        replies = await self._infer_in_batches(interface, items, interface.outputs, deadline, parameters, request_id)
        return [self._result(interface, members, item, reply) for item, reply in zip(items, replies, strict=True)]

    async def _outputs(
        self,
        task: str,
        texts: str | Sequence[Any],
        deadline: Deadline,
        parameters: Mapping[str, str],
        usage: bool = False,
    ) -> list[Outputs]:
        interface = await self._interface(task, deadline)
        outputs = (*interface.outputs, USAGE) if usage else interface.outputs
        return await self._infer_in_batches(interface, items_in(interface.takes, texts), outputs, deadline, parameters)

    async def _stream(
        self, task: str, item: Any, deadline: Deadline, parameters: Mapping[str, str], request_id: str = ""
    ) -> AsyncGenerator[Result, None]:
        interface = await self._interface(task, deadline)
        members = await self._members(interface, deadline)
        wishes = {STREAM: "true", **parameters}
        replies = self._parts(interface, [item], interface.outputs, deadline, wishes, request_id)
        async with aclosing(replies) as parts:
            async for tensors in parts:
                own = {name: tensor[0] for name, tensor in tensors.items()}
                yield self._result(interface, members, item, own)

    async def _members(self, group: Interface, deadline: Deadline) -> dict[str, Interface]:
        """The interfaces of a group's tasks; of one that the server does not have loaded nothing is known."""
        found = {name: await self._unless_refused(self._interface(name, deadline)) for name in group.members}
        return {name: each for name, each in found.items() if not isinstance(each, ServerProblem)}

    def _result(self, asked: Interface, members: Mapping[str, Interface], item: Any, outputs: Outputs) -> Result:
        """Of one item: a task's result, or those of a group's tasks."""
        if not asked.members:
            return result(asked.kind, asked.labels, item, outputs)
        problems = problems_in(asked, outputs, self._address)
        found: dict[str, Result | ServerProblem] = {}
        for name in asked.members:
            own, task = own_outputs(asked, name, outputs), members.get(name)
            kind, labels = (kind_of(list(own)), ()) if task is None else (task.kind, task.labels)
            found[name] = problems.get(name) or result(kind, labels, item, own)
        return Answers(found)

    async def _interface(self, task: str, deadline: Deadline) -> Interface:
        if task not in self._interfaces:
            self._interfaces[task] = Interface.of(await self._config(task, deadline))
        return self._interfaces[task]

    async def _config(self, model: str, deadline: Deadline) -> dict[str, Any]:
        arguments = {"model_name": model, **self._as_document}
        document: dict[str, Any] = await self._connection.send("get_model_config", arguments, deadline)
        config: dict[str, Any] = document.get("config", document)
        return config

    async def _infer_in_batches(
        self,
        interface: Interface,
        items: Sequence[Any],
        outputs: Sequence[str],
        deadline: Deadline,
        parameters: Mapping[str, str],
        request_id: str = "",
    ) -> list[Outputs]:
        """Of each item its output tensors, of the whole reply."""

        async def infer(rows: Sequence[Any]) -> list[Outputs]:
            async with aclosing(self._parts(interface, rows, outputs, deadline, parameters, request_id)) as reply:
                parts = [part async for part in reply]
            own = ([{name: tensor[row] for name, tensor in part.items()} for part in parts] for row in range(len(rows)))
            return [joined(interface.kind, each) if interface.streams else each[0] for each in own]

        requests = batches(items, interface.max_batch_size)
        replies = await self._transport.gather(infer(rows) for rows in requests)
        return [each for reply in replies for each in reply]

    async def _parts(
        self,
        interface: Interface,
        rows: Sequence[Any],
        outputs: Sequence[str],
        deadline: Deadline,
        parameters: Mapping[str, str],
        request_id: str = "",
    ) -> AsyncGenerator[Outputs, None]:
        """The output tensors, batch first, of each part of one request's reply, which mostly is one part."""
        if not interface.streams:
            arguments = infer_arguments(self._http, interface, rows, outputs, parameters, request_id)
            answer = await self._connection.send("infer", arguments, deadline)
            yield {name: answer.as_numpy(name) for name in outputs}
            return
        array = array_of(interface.takes, rows)
        own = array if interface.batched else array[0]
        request = stream_request(interface.name, interface.takes, own, tuple(outputs), parameters, request_id)
        # Once a part has come, the request is not sent again: its reply could be another one.
        first, rest = await self._connection.stream(request, deadline)
        async with aclosing(rest):
            yield tensors_in(first, interface.batched)
            while (response := await self._connection.next(rest, deadline)) is not None:
                yield tensors_in(response, interface.batched)

    async def _tasks(self, deadline: Deadline) -> dict[str, TaskStatus]:
        models = models_in(await self._index(deadline))
        told: dict[str, BackboneStatus | ServerProblem] = {}  # by backbone
        known: set[str] = set()  # tasks of these
        others: set[str] = set()  # models that are no tasks
        problems: dict[str, str] = {}
        for name in [name for name, model in models.items() if model.ready]:
            if name in known or name in told:
                continue
            config = await self._unless_refused(self._config(name, deadline))
            if isinstance(config, ServerProblem):  # unloaded meanwhile
                problems[name] = str(config)
                continue
            backbone = backbone_of(config)
            if not backbone:
                others.add(name)
                continue
            if backbone not in told:
                told[backbone] = await self._unless_refused(self._status(backbone, "", deadline))
            status = told[backbone]
            if isinstance(status, ServerProblem):  # its process is gone
                problems[name] = f"its backbone {backbone!r} does not answer: {status}"
            else:
                known |= {task.name for task in status.tasks}
        tasks = {name: model for name, model in models.items() if name not in others | told.keys()}
        return tasks_of(tasks, [each for each in told.values() if isinstance(each, BackboneStatus)], problems)

    async def _index(self, deadline: Deadline) -> list[Any]:
        """The models that the server has in its repository."""
        try:
            index = await self._connection.send("get_model_repository_index", self._as_document, deadline)
        except (ServerProblem, UnicodeDecodeError) as error:
            if (problem := index_problem(error, self.url)) is None:
                raise
            raise problem from None
        found: list[Any] = index if self._http else index.get("models", [])
        return found

    async def _unless_refused(self, call: Awaitable[T]) -> T | ServerProblem:
        """What a call returns, or that the server, which can be reached and is in time, answers with an error."""
        try:
            return await call
        except (Unreachable, DeadlineExceeded):
            raise
        except ServerProblem as error:
            return error

    async def _status(self, backbone: str, task: str, deadline: Deadline, *, prefetch: bool = False) -> BackboneStatus:
        try:
            arguments = status_arguments(self._http, backbone, task, prefetch=prefetch)
            return status_in(await self._connection.send("infer", arguments, deadline))
        except ServerProblem as error:
            if "decoupled" not in str(error):
                raise
        if self._http:
            raise needs_grpc(backbone)
        answer, rest = await self._connection.stream(status_request(backbone, task, prefetch=prefetch), deadline)
        while (
            await self._connection.next(rest, deadline) is not None
        ):  # breaking a stream off at its end can end Triton 2.51
            pass
        return status_in(answer)

    def forget(self, task: str) -> None:
        """Ask the server anew what a task is, the next time: it may have become another one."""
        self._interfaces.pop(task, None)

    async def _ready(self, model: str, deadline: Deadline) -> bool:
        if not model:
            return await self._connection.is_ready(deadline)
        return bool(await self._connection.send("is_model_ready", {"model_name": model}, deadline))

    async def _load(self, task: str, deadline: Deadline) -> None:
        """Load a task, and hear from its backbone what has become of it."""
        if not await self._control("load_model", task, deadline):
            return
        backbone = backbone_of(await self._config(task, deadline))
        if backbone and backbone != task:
            check_loaded(task, await self._status(backbone, task, deadline))

    async def _control(self, method: str, task: str, deadline: Deadline) -> bool:
        """Load or unload a task, whose interface may be another one afterwards; False where the server polls."""
        try:
            await self._connection.send(method, {"model_name": task}, deadline)
        except ServerProblem as error:
            if "polling is enabled" not in str(error):  # such a server finds what changed without being told
                raise
            return False
        finally:
            self._interfaces.pop(task, None)
        return True

    async def _wait_for(self, task: str, condition: Callable[[], Awaitable[bool]], timeout: float) -> None:
        deadline, last_error = self._deadline(timeout), "it answers, but not with this version"
        while not deadline.passed:
            try:
                if await condition():
                    return
            except ServerProblem as error:
                last_error = str(error)
            self._interfaces.pop(task, None)
            await self._transport.sleep(POLL_S)
        raise DeadlineExceeded(f"{self.url}: {task!r} is not served after {timeout:g} s: {last_error}")
