"""What clients make of the server's index and of what its backbones tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import numpy as np
import pytest
from live_server import status, task
from tritonclient.utils import InferenceServerException

from fmplex import AsyncClient, Client, ServerProblem, TaskProblem, Unreachable
from fmplex.client.status import NOT_LOADED, backbone_of, models_in
from fmplex_backend.status import BackboneStatus, TaskStatus

UNHEALTHY = InferenceServerException("Stub process 'base_0_0' is not healthy.", status="StatusCode.INTERNAL")


class Told:
    """An InferResult with the status."""

    def __init__(self, status: BackboneStatus) -> None:
        self.status = status

    def as_numpy(self, name: str) -> Any:
        assert name == "STATUS"
        return np.array([[self.status.model_dump_json().encode()]], dtype=np.object_)


BASE = {"name": "base", "backend": "fmplex"}
OTHER = {"name": "other", "backend": "onnxruntime"}


def entry(name: str, backbone: str = "base") -> dict[str, Any]:
    step = {"model_name": backbone, "output_map": {"SCORES": "SCORES", "VFM_3": "usage"}}
    return {"name": name, "ensemble_scheduling": {"step": [step]}, "input": [{"name": "TEXT"}], "output": []}


class ServerBench:
    """A client, and as its transport a server: an index, configurations, and a backbone that tells of its tasks."""

    def __init__(self, kind: type[Client] | type[AsyncClient], url: str) -> None:
        self.http = url.startswith("http")
        self.index: list[dict[str, str]] = [{"name": "base", "version": "1", "state": "READY"}]
        self.configs: dict[str, dict[str, Any]] = {"base": BASE, "other": OTHER}
        self.told = status()
        self.failure: Exception | None = None  # of requests to the backbone
        self.methods: list[str] = []
        self.read_to_the_end = False
        made: Any = type(kind.__name__, (kind,), {"_connect": lambda client, address: self})
        self.client = made(url, retries=0)

    def tells(self, *tasks: TaskStatus) -> None:
        self.told = status(*tasks)

    def serves(self, name: str, version: str = "1", state: str = "READY", reason: str = "") -> None:
        self.index.append({"name": name, "version": version, "state": state, "reason": reason})

    def call(self, method: str, *arguments: Any) -> Any:
        answer = getattr(self.client, method)(*arguments)
        return asyncio.run(answer) if asyncio.iscoroutine(answer) else answer

    # -- the transport

    def clock(self) -> float:
        return 0.0

    async def send(self, method: str, arguments: Mapping[str, Any], timeout: float | None) -> Any:
        self.methods.append(method)
        if method == "infer":
            assert [each.name() for each in arguments["inputs"]] == ["TASK"]
            return self._tell()
        if method == "get_model_config":
            config = self.configs.get(arguments["model_name"]) or entry(arguments["model_name"])
            return config if self.http else {"config": config}
        index = self.index if self.http else {"models": self.index}
        return {"get_model_repository_index": index, "is_model_ready": True}.get(method)

    async def stream(self, request: Any, headers: Any, timeout: float | None) -> AsyncGenerator[Any, None]:
        self.methods.append("stream")
        assert [each.name for each in request.inputs] == ["TASK"]
        yield Told(self.told)
        self.read_to_the_end = True

    def _tell(self) -> Told:
        if self.failure is not None:
            raise self.failure
        return Told(self.told)


@pytest.fixture(params=[(Client, "host:8001"), (AsyncClient, "host:8001"), (Client, "http://host:8000")])
def bench(request: pytest.FixtureRequest) -> ServerBench:
    return ServerBench(*request.param)


def test_an_old_versions_entry_in_the_index_is_not_the_models_state() -> None:
    """After a rollback, and after a new version, in whichever order they stand there."""
    gone = {"name": "one", "version": "2", "state": "UNAVAILABLE", "reason": "unloaded"}
    serving = {"name": "one", "version": "1", "state": "READY"}
    for index in ([gone, serving], [serving, gone]):
        assert models_in(index)["one"].ready
    assert models_in([gone])["one"].reason == "unloaded"
    assert not models_in([{"name": "never"}])["never"].ready


@pytest.mark.parametrize(
    ("config", "backbone"),
    [
        (entry("one"), "base"),
        (BASE, "base"),
        (OTHER, ""),
        ({"ensemble_scheduling": {"step": [{"model_name": "other", "output_map": {"A": "A"}}]}}, ""),
    ],
)
def test_the_backbone_that_a_task_steps_into(config: dict[str, Any], backbone: str) -> None:
    assert backbone_of(config) == backbone


def test_tasks_are_as_their_backbone_tells(bench: ServerBench) -> None:
    bench.tells(task("one"), task("two", state="refused", error="t/1/x: cut short"))
    for name in ("one", "two"):
        bench.serves(name)
    bench.serves("other")
    found = bench.call("tasks")
    assert found == {"one": bench.told.tasks[0], "two": bench.told.tasks[1]}
    assert bench.methods.count("get_model_config") == 2, "of one model for each backbone, and of others"


def test_a_task_whose_backbone_is_missing_or_whose_entry_is_not_loaded_does_not_vanish(bench: ServerBench) -> None:
    bench.tells(task("dropped"), task("broken", state="refused", error="wrong"))
    bench.serves("orphan", state="UNAVAILABLE", reason="ensemble orphan contains models that are not available: nobody")
    for name in ("dropped", "broken", "never"):
        bench.index.append({"name": name})
    found = bench.call("tasks")
    assert {name: each.state for name, each in found.items()} == {
        "orphan": "not served",
        "dropped": "not served",
        "broken": "refused",
        "never": "not served",
    }
    assert "not available: nobody" in found["orphan"].error
    assert (found["dropped"].tag, found["dropped"].error) == (0, NOT_LOADED)
    assert found["broken"].error == "wrong"


def test_a_task_that_its_backbone_does_not_know(bench: ServerBench) -> None:
    bench.tells()
    bench.serves("strange")
    assert "does not find it in its model repository" in bench.call("tasks")["strange"].error


def test_one_that_moved_to_another_tag_is_told_of_once(bench: ServerBench) -> None:
    bench.tells(task("one", state="leaving", tag=3), task("one", tag=4), task("gone", state="leaving"))
    bench.serves("one")
    found = bench.call("tasks")
    assert (found["one"].tag, found["one"].state, found["gone"].state) == (4, "serving", "leaving")


def test_a_backbone_whose_process_is_gone(bench: ServerBench) -> None:
    for name in ("one", "two"):
        bench.serves(name)
    bench.failure = UNHEALTHY
    found = bench.call("tasks")
    assert {each.state for each in found.values()} == {"not served"}
    assert "its backbone 'base' does not answer: Stub process" in found["two"].error
    assert bench.methods.count("infer") == 1


def test_a_server_that_cannot_be_reached_is_an_error(bench: ServerBench) -> None:
    bench.failure = ConnectionRefusedError("refused")
    with pytest.raises(Unreachable):
        bench.call("tasks")


def test_status_and_ready(bench: ServerBench) -> None:
    bench.tells(task("one"))
    assert bench.call("status", "base", "one") == bench.told
    assert bench.call("ready", "one") is True


def test_a_backbone_that_answers_in_parts_is_asked_by_a_stream(bench: ServerBench) -> None:
    """One that is broken off at its end can end Triton."""
    bench.tells(task("one"))
    bench.failure = InferenceServerException("this does not support models with decoupled transaction policy")
    if bench.http:
        with pytest.raises(TaskProblem, match="Use a client of gRPC"):
            bench.call("status", "base")
        return
    assert bench.call("status", "base") == bench.told
    assert bench.methods == ["infer", "stream"]
    assert bench.read_to_the_end


class TestLoad:
    def test_a_task_that_is_served(self, bench: ServerBench) -> None:
        bench.tells(task("one"))
        bench.call("load", "one")
        assert bench.methods[:2] == ["load_model", "get_model_config"]

    @pytest.mark.parametrize(
        ("told", "said"),
        [
            ([task("one", state="refused", error="one/1/x: cut short")], "'one' is refused: one/1/x: cut short"),
            ([task("one", state="serving former version", error="2/x")], "goes on with version 1.*is refused: 2/x"),
            ([], "its backbone 'base' does not find it"),
            ([task("one", state="leaving")], "its backbone 'base' does not find it"),
        ],
    )
    def test_a_task_that_is_refused_is_no_success(self, bench: ServerBench, told: list[TaskStatus], said: str) -> None:
        bench.tells(*told)
        with pytest.raises(ServerProblem, match=said):
            bench.call("load", "one")

    @pytest.mark.parametrize("model", ["base", "other"])
    def test_other_models_are_just_loaded(self, bench: ServerBench, model: str) -> None:
        bench.call("load", model)
        assert bench.methods == ["load_model", "get_model_config"]
