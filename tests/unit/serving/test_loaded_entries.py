"""What a server tells of the entries by which it has loaded its tasks, and when it is not asked."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from fake_family.runtime import FakeClock
from tritonclient.grpc import service_pb2, service_pb2_grpc

from fmplex_backend.serving.asked_server import PAUSE_S
from fmplex_backend.serving.loaded_entries import LoadedEntries


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Tells the configurations of its models."""

    def __init__(self) -> None:
        self.configs: dict[str, service_pb2.ModelConfigResponse] = {}
        self.asked: list[str] = []

    def put(self, name: str, backbone: str, tag: int) -> None:
        config = self.configs[name] = service_pb2.ModelConfigResponse()
        step = config.config.ensemble_scheduling.step.add(model_name=backbone)
        step.output_map.update({"SCORES": "SCORES", f"VFM_{tag}": "usage"})

    def ModelConfig(
        self, request: service_pb2.ModelConfigRequest, context: grpc.ServicerContext
    ) -> service_pb2.ModelConfigResponse:
        self.asked.append(request.name)
        if request.name not in self.configs:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unknown model: {request.name}")
        return self.configs[request.name]


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(0.0)


@pytest.fixture
def entries(server: Server, clock: FakeClock) -> Iterator[LoadedEntries]:
    with ThreadPoolExecutor(1) as pool:
        served = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(server, served)
        port = served.add_insecure_port("127.0.0.1:0")
        served.start()
        entries = LoadedEntries(f"127.0.0.1:{port}", "base", clock)
        try:
            yield entries
        finally:
            entries.close()
            served.stop(None).wait()


def test_it_tells_the_tags_on_this_backbone(server: Server, entries: LoadedEntries) -> None:
    server.put("mine", "base", 3)
    server.put("anothers", "other", 4)
    server.put("tâche", "base", 5)
    assert entries.tags("mine") == [3]
    assert entries.tags("anothers") == []
    assert entries.tags("t\udcc3\udca2che") == [5], "a name as Python reads it where the locale is C"


def test_what_does_not_answer_is_not_asked_again_at_once(
    server: Server, entries: LoadedEntries, clock: FakeClock
) -> None:
    assert entries.tags("mine") is None
    server.put("mine", "base", 3)
    assert entries.tags("mine") is None
    assert server.asked == ["mine"]
    clock.sleep(PAUSE_S)
    assert entries.tags("mine") == [3]


def test_a_server_whose_address_is_not_known_tells_nothing() -> None:
    assert LoadedEntries("", "base").tags("mine") is None
