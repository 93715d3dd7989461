"""Groups: one call is asked of several tasks, and their replies are gathered into one.

Each of the tasks has a `Request` of its own: its queue, its account, its version. What comes of them all is sent once
the last of them has its reply: the answers of those that have one and an error, by name, for each of the others; or an
error, where none has answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tritonclient.utils import triton_to_np_dtype

from fmplex_backend.error_status import with_status
from fmplex_backend.errors import ExecutionFailed, FmplexError, GroupFailed
from fmplex_backend.interface import ERRORS, TensorSpec, member_name, position_name
from fmplex_backend.repository.groups import GroupSpec, Member
from fmplex_backend.types import NO_USAGE, Answer, Failed, Reply, Send, Usage


class Gathering:
    """The replies to one call of a group. Any thread may bring one; the last sends the group's."""

    def __init__(self, spec: GroupSpec, send: Send) -> None:
        self.spec, self._send = spec, send
        self._replies: list[Reply] = [_NO_REPLY] * len(spec.members)
        self._left = list(range(len(self._replies)))
        self._unsent = [True]

    def take(self, position: int, reply: Reply, final: bool) -> None:
        """A member's last reply, by its position among the group's members: once for each.

        Raises ExecutionFailed for a part of a reply: what goes on cannot be gathered.
        """
        if not final:
            raise ExecutionFailed(f"{self.spec.members[position].name!r} answers in parts, which no group takes")
        self._replies[position] = reply
        if self._left.pop() == 0:  # `pop` is atomic and each number comes once, so just one caller is the last
            self._finish(self._gathered())

    def fail(self, error: FmplexError) -> None:
        """Answer with an error now, whatever the members' replies; nothing where that is done already."""
        self._finish(Failed(error))

    def _finish(self, reply: Reply) -> None:
        try:
            self._unsent.pop()  # atomic, as above
        except IndexError:
            return
        self._send(reply, True)

    def _gathered(self) -> Reply:
        try:
            return gathered(self.spec, self._replies)
        except Exception as error:  # the call must not stay without an answer
            return Failed(ExecutionFailed(f"gathering the answers of {self.spec.name!r} raised {error!r}"))


_NO_REPLY = Failed(ExecutionFailed("there is no reply yet"))


def gathered(spec: GroupSpec, replies: Sequence[Reply]) -> Reply:
    """One reply of the members', which are in the order of `spec.members`."""
    replies = [_whole(member, reply) for member, reply in zip(spec.members, replies, strict=True)]
    answers = {member.name: reply for member, reply in zip(spec.members, replies, strict=True)}
    good = [reply for reply in replies if isinstance(reply, Answer)]
    if not good:
        return Failed(_failed_altogether(spec, replies))
    items = len(next(iter(good[0].tensors.values())))
    tensors: dict[str, Any] = {ERRORS.name: _errors(replies, items)}
    for position, member in enumerate(spec.by_tag):
        reply = answers[member.name]
        usage, made = (reply.usage, reply.tensors) if isinstance(reply, Answer) else (NO_USAGE, {})
        tensors[member_name(member.tag)] = np.tile(np.array(usage, dtype=np.int64), (items, 1))
        for output in member.outputs:
            tensors[position_name(position, output.name)] = _tensor(output, made, items)
    return Answer(tensors, Usage(*(max(numbers) for numbers in zip(*(reply.usage for reply in good), strict=True))))


def _whole(member: Member, reply: Reply) -> Reply:
    """An answer without an output that the group shows is none: its task was changed since it was asked."""
    missing = [each.name for each in member.outputs if isinstance(reply, Answer) and each.name not in reply.tensors]
    if not missing:
        return reply
    return Failed(ExecutionFailed(f"{member.name!r} does not make {', '.join(missing)} any more"))


def _tensor(output: TensorSpec, made: Mapping[str, Any], items: int) -> Any:
    """What the member has made; of one that has failed [items, ...] without content: a dim that is open is 0."""
    if output.name in made:
        return made[output.name]
    kind = triton_to_np_dtype(output.data_type.removeprefix("TYPE_").replace("STRING", "BYTES"))
    return np.full((items, *(max(0, dim) for dim in output.dims)), b"" if kind is np.object_ else 0, dtype=kind)


def _errors(replies: Sequence[Reply], items: int) -> Any:
    """[items, members]: "" or the status and the message, the same for each item."""
    texts = [with_status(reply.error.code, str(reply.error)) if isinstance(reply, Failed) else "" for reply in replies]
    row = np.array([text.encode("utf-8", "surrogateescape") for text in texts], dtype=np.object_)
    return np.tile(row, (items, 1))


def _failed_altogether(spec: GroupSpec, replies: Sequence[Reply]) -> FmplexError:
    """Of a group none of whose members has answered: with the first one's status, each text once."""
    failed = [
        (member.name, reply.error)
        for member, reply in zip(spec.members, replies, strict=True)
        if isinstance(reply, Failed)
    ]
    texts: dict[str, list[str]] = {}
    for name, error in failed:
        texts.setdefault(str(error), []).append(name)
    said = "; ".join(f"{', '.join(names)}: {text}" for text, names in texts.items())
    first = failed[0][1]
    return GroupFailed(f"no task of {spec.name!r} answers: {said}", first.code, first.reason)
