"""What the members of a group reply becomes one reply, whatever the order and whoever fails."""

from __future__ import annotations

import itertools
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmplex_backend.errors import Cancelled, ExecutionFailed, InvalidRequest, QueueFull
from fmplex_backend.interface import TensorSpec
from fmplex_backend.repository.groups import GroupSpec, Member
from fmplex_backend.serving import gathering as gathering_module
from fmplex_backend.serving.gathering import Gathering
from fmplex_backend.types import Answer, Failed, Reply, Usage

OUTPUTS = (
    TensorSpec("SCORES", "TYPE_FP32", (-1,)),
    TensorSpec("LABEL", "TYPE_STRING", (-1,)),
    TensorSpec("OFFSETS", "TYPE_INT32", (-1, 2)),
    TensorSpec("TRUNCATED", "TYPE_BOOL", (1,)),
)
# The order of the members is not that of their tags, which the positions follow.
GROUP = GroupSpec(
    "guard", 9, Path("guard/config.pbtxt"), None, ("TEXT",), (Member("b", 5, OUTPUTS), Member("a", 2, OUTPUTS))
)

USAGE = Usage(1, 2, 3)


def answer(mark: float, usage: Usage = USAGE, items: int = 2) -> Answer:
    tensors = {
        "SCORES": np.full((items, 3), mark, np.float32),
        "LABEL": np.full((items, 1), b"x", np.object_),
        "OFFSETS": np.zeros((items, 4, 2), np.int32),
        "TRUNCATED": np.ones((items, 1), np.bool_),
        "OTHER": np.zeros((items, 1)),
    }
    return Answer(tensors, usage)


def gather(*replies: Reply, order: Any = None, spec: GroupSpec = GROUP) -> Reply:
    """The one reply of the group."""
    sent: list[tuple[Reply, bool]] = []
    gathering = Gathering(spec, lambda reply, final: sent.append((reply, final)))
    for position in order or range(len(replies)):
        assert not sent, "sent before all have replied"
        gathering.take(position, replies[position], True)
    ((reply, final),) = sent
    assert final
    return reply


def tensors(reply: Reply) -> dict[str, Any]:
    assert isinstance(reply, Answer), reply
    return dict(reply.tensors)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_each_answer_stands_at_the_position_of_its_tag(order: tuple[int, ...]) -> None:
    found = tensors(gather(answer(1.0), answer(2.0), order=order))
    assert found["0.SCORES"].tolist() == [[2.0] * 3] * 2  # of a, whose tag is the lower
    assert found["1.SCORES"].tolist() == [[1.0] * 3] * 2
    assert found["ERRORS"].tolist() == [[b"", b""]] * 2
    assert "0.OTHER" not in found  # the entry does not show it


def test_receipts_are_the_members_own_and_the_group_has_the_largest_of_each_number() -> None:
    reply = gather(answer(1.0, Usage(10, 2, 30)), answer(2.0, Usage(1, 20, 3)))
    assert isinstance(reply, Answer)
    assert reply.usage == Usage(10, 20, 30)
    assert reply.tensors["MEMBER_5"].tolist() == [[10, 2, 30]] * 2
    assert reply.tensors["MEMBER_2"].tolist() == [[1, 20, 3]] * 2


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_one_that_fails_leaves_the_other_s_answer(order: tuple[int, ...]) -> None:
    found = tensors(gather(answer(1.0), Failed(QueueFull("it is full")), order=order))
    assert found["1.SCORES"].tolist() == [[1.0] * 3] * 2
    assert found["ERRORS"].tolist() == [[b"", b"[UNAVAILABLE] it is full"]] * 2
    assert found["0.SCORES"].shape == found["0.LABEL"].shape == (2, 0)
    assert found["0.OFFSETS"].shape == (2, 0, 2)
    assert found["0.TRUNCATED"].tolist() == [[False], [False]]
    assert found["MEMBER_2"].tolist() == [[0, 0, 0]] * 2
    kinds = {name: found[f"0.{name}"].dtype for name in ("SCORES", "LABEL", "OFFSETS", "TRUNCATED")}
    assert kinds == {"SCORES": np.float32, "LABEL": np.object_, "OFFSETS": np.int32, "TRUNCATED": np.bool_}


def test_where_all_fail_it_is_an_error_with_the_first_one_s_status() -> None:
    reply = gather(Failed(InvalidRequest("no text")), Failed(QueueFull("it is full")))
    assert isinstance(reply, Failed)
    assert (reply.error.code, reply.error.reason) == ("INVALID_ARG", "invalid")
    assert str(reply.error) == "no task of 'guard' answers: b: no text; a: it is full"


def test_what_all_say_is_said_once() -> None:
    reply = gather(*[Failed(Cancelled("the client cancelled the request"))] * 2)
    assert isinstance(reply, Failed)
    assert reply.error.code == "CANCELLED"
    assert str(reply.error) == "no task of 'guard' answers: b, a: the client cancelled the request"


ENDS: list[Any] = [answer(1.0), Failed(ExecutionFailed("broken")), Failed(Cancelled("gone"))]


@pytest.mark.parametrize("ends", [*itertools.product(range(3), repeat=3)])
def test_every_way_to_end_in_every_order_is_one_reply(ends: tuple[int, ...]) -> None:
    members = tuple(Member(name, tag, OUTPUTS) for tag, name in enumerate("abc"))
    spec = GroupSpec("guard", 9, Path("guard/config.pbtxt"), None, ("TEXT",), members)
    replies = [ENDS[end] for end in ends]
    for order in itertools.permutations(range(3)):
        reply = gather(*replies, order=order, spec=spec)
        assert isinstance(reply, Failed) == all(isinstance(each, Failed) for each in replies)
        if isinstance(reply, Answer):
            told = [bool(text) for text in reply.tensors["ERRORS"][0]]
            assert told == [isinstance(each, Failed) for each in replies]


def test_threads_that_bring_replies_at_once_send_one() -> None:
    members = tuple(Member(f"m{tag}", tag, OUTPUTS) for tag in range(16))
    spec = GroupSpec("guard", 99, Path("guard/config.pbtxt"), None, ("TEXT",), members)
    for _ in range(50):
        sent: list[Reply] = []
        gathering = Gathering(spec, lambda reply, final, sent=sent: sent.append(reply))  # type: ignore[misc]
        ready = threading.Barrier(16)

        def bring(position: int, gathering: Gathering = gathering, ready: threading.Barrier = ready) -> None:
            ready.wait(10)
            gathering.take(position, answer(float(position)), True)

        threads = [threading.Thread(target=partial(bring, position)) for position in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        (reply,) = sent
        found = tensors(reply)
        assert [found[f"{position}.SCORES"][0, 0] for position in range(16)] == list(range(16))


def test_a_part_is_refused_and_the_reply_that_follows_counts() -> None:
    sent: list[Reply] = []
    gathering = Gathering(GROUP, lambda reply, final: sent.append(reply))
    with pytest.raises(ExecutionFailed, match="'b' answers in parts, which no group takes"):
        gathering.take(0, answer(1.0), False)
    gathering.take(0, Failed(ExecutionFailed("in parts")), True)
    gathering.take(1, answer(2.0), True)
    (reply,) = sent
    assert tensors(reply)["ERRORS"].tolist() == [[b"[INTERNAL] in parts", b""]] * 2


def test_failing_it_altogether_is_the_only_reply() -> None:
    sent: list[Reply] = []
    gathering = Gathering(GROUP, lambda reply, final: sent.append(reply))
    gathering.take(0, answer(1.0), True)
    gathering.fail(ExecutionFailed("odd"))
    gathering.take(1, answer(2.0), True)
    gathering.fail(ExecutionFailed("again"))
    (reply,) = sent
    assert isinstance(reply, Failed)
    assert str(reply.error) == "odd"


def test_an_answer_that_lacks_an_output_is_none() -> None:
    """Never an empty tensor without an error beside it."""
    less = answer(2.0)
    found = tensors(gather(answer(1.0), Answer({"SCORES": less.tensors["SCORES"]}, less.usage)))
    assert found["0.SCORES"].shape == (2, 0)
    missing = b"[INTERNAL] 'a' does not make LABEL, OFFSETS, TRUNCATED any more"
    assert found["ERRORS"].tolist() == [[b"", missing]] * 2


def test_what_cannot_be_gathered_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering_module, "gathered", lambda spec, replies: 1 / 0)
    reply = gather(answer(1.0), answer(2.0))
    assert isinstance(reply, Failed)
    assert "gathering the answers of 'guard' raised ZeroDivisionError" in str(reply.error)
