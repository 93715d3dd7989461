"""What a client makes of a group's reply: a dict of results, with errors in the places of those that failed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from fmplex import Answers, Busy, Client, Label, Raw, ServerProblem, Spans, Values
from fmplex.cli.answers import result_line
from fmplex.client.groups import own_outputs, owner
from fmplex.client.results import above, as_json_value, fields
from fmplex.client.sync import BlockingTransport
from fmplex.client.transport import Transport
from fmplex.client.wire import Address, Interface

OUTPUTS = ("topic.SCORES", "topic.LABEL", "topic.usage", "size.SCORES", "size.usage", "errors", "usage")
GROUP = {
    "name": "guard",
    "max_batch_size": 2,
    "input": [{"name": "TEXT"}],
    "output": [{"name": name} for name in OUTPUTS],
    "parameters": {"group": {"string_value": "topic, size"}},
}
TOPIC = {
    "name": "topic",
    "input": [{"name": "TEXT"}],
    "output": [{"name": "SCORES"}, {"name": "LABEL"}],
    "parameters": {"decoder": {"string_value": "classification"}, "labels": {"string_value": '["art", "sport"]'}},
}
SIZE = {"name": "size", "input": [{"name": "TEXT"}], "output": [{"name": "SCORES"}]}
FULL = "[UNAVAILABLE] 'size' has 9 requests waiting, its max_queue is 9"


class Reply:
    """Of two texts: both are about sport, and one long and two long."""

    def __init__(self, error: str = "") -> None:
        self.error = error

    def as_numpy(self, name: str) -> Any:
        own: dict[str, Any] = {
            "topic.SCORES": np.array([[0.25, 0.75]] * 2, np.float32),
            "topic.LABEL": np.array([[b"sport"]] * 2, np.object_),
            "size.SCORES": np.array([[1.0], [2.0]], np.float32) if not self.error else np.zeros((2, 0)),
            "errors": np.array([[b"", self.error.encode()]] * 2, np.object_),
        }
        return own[name]


class FakeTransport(BlockingTransport):
    """A server with the group and those of its tasks that are in `configs`."""

    def __init__(self) -> None:
        self.configs: dict[str, Any] = {"guard": GROUP, "topic": TOPIC, "size": SIZE}
        self.reply = Reply()
        self.asked: list[str] = []

    async def send(self, method: str, arguments: Mapping[str, Any], timeout: float | None) -> Any:
        self.asked.append(f"{method} {arguments['model_name']}")
        if method == "infer":
            return self.reply
        if arguments["model_name"] not in self.configs:
            raise InferenceServerException("Request for unknown model: it is not found", "StatusCode.NOT_FOUND")
        return {"config": self.configs[arguments["model_name"]]}

    def stream(self, request: Any, headers: Any, timeout: float | None) -> Any:
        raise AssertionError("no group streams")

    async def close(self) -> None:
        pass


class FakeClient(Client):
    transport: FakeTransport

    def _connect(self, address: Address) -> Transport:
        self.transport = FakeTransport()
        return self.transport


@pytest.fixture
def client() -> FakeClient:
    return FakeClient("host:8001")


def answers(client: Client, *texts: str) -> list[Answers]:
    found = client.predict("guard", texts)
    assert all(isinstance(each, Answers) for each in found)
    return [each for each in found if isinstance(each, Answers)]


def test_the_interface_of_a_group() -> None:
    group = Interface.of(GROUP)
    assert group.members == ("topic", "size")
    assert group.outputs == ("topic.SCORES", "topic.LABEL", "size.SCORES", "errors")  # no receipts
    assert Interface.of(TOPIC).members == ()


def test_each_text_has_a_dict_of_results(client: FakeClient) -> None:
    first, second = answers(client, "a", "bb")
    assert list(first) == ["topic", "size"]
    assert first["topic"] == Label("sport", {"art": 0.25, "sport": 0.75})
    value = second["size"]
    assert isinstance(value, Values)
    assert value.value == 2.0
    assert (first.problems, first.truncated) == ({}, False)


def test_interfaces_are_asked_for_once(client: FakeClient) -> None:
    for _ in range(2):
        answers(client, "a", "bb")
    configs = [f"get_model_config {name}" for name in ("guard", "topic", "size")]
    assert client.transport.asked == [*configs, "infer guard", "infer guard"]


def test_an_error_stands_in_the_place_of_an_answer(client: FakeClient) -> None:
    client.transport.reply = Reply(FULL)
    for each in answers(client, "a", "bb"):
        assert isinstance(each["topic"], Label)
        assert isinstance(each["size"], Busy)
        assert each.problems == {"size": each["size"]}
        assert str(each["size"]) == "host:8001: 'size' has 9 requests waiting, its max_queue is 9"


def test_a_task_that_the_server_has_not_loaded_is_read_by_its_outputs(client: FakeClient) -> None:
    del client.transport.configs["topic"]
    first, _ = answers(client, "a", "bb")
    assert first["topic"] == Label("sport", {"0": 0.25, "1": 0.75})
    client.transport.configs["topic"] = TOPIC
    first, _ = answers(client, "a", "bb")
    assert first["topic"] == Label("sport", {"art": 0.25, "sport": 0.75})


def test_a_task_s_name_may_begin_with_another_s() -> None:
    members = ("a", "a.b")
    assert [owner(name, members) for name in ("a.X", "a.b.X", "a.bc", "b.X", "errors")] == ["a", "a.b", "a", "", ""]
    group = Interface("g", "", (), (), 1, members=members)
    outputs = {name: np.zeros(1) for name in ("a.X", "a.b.X", "errors")}
    assert own_outputs(group, "a", outputs).keys() == {"X"}


MIXED = Answers({"topic": Label("sport", {"art": 0.25, "sport": 0.75}), "size": ServerProblem("it is full")})


def test_answers_as_json_columns_and_text() -> None:
    document = as_json_value(MIXED)
    assert document["topic"]["label"] == "sport"
    assert document["size"] == {"error": "it is full"}
    json.dumps(document)
    columns = fields(MIXED)
    assert columns == {
        "topic.label": "sport",
        "topic.score": 0.75,
        "topic.truncated": False,
        "topic.error": "",
        "size.error": "it is full",
    }
    assert result_line(MIXED, 1) == "topic: sport 0.750; size: error: it is full"


def test_a_threshold_is_for_those_with_scores() -> None:
    mixed = Answers({**MIXED, "value": Values(np.float32([1])), "spans": Spans(())})
    kept = above(mixed, 0.9)
    assert isinstance(kept, Answers)
    assert kept["topic"] == Label("", {"art": 0.25, "sport": 0.75})
    assert kept["size"] is mixed["size"]
    assert kept["value"] is mixed["value"]


def test_one_cut_off_text_tells() -> None:
    assert Answers({"raw": Raw({}, truncated=True)}).truncated
