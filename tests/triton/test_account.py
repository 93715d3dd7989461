"""What a server says it did adds up with what was sent, and what many tasks weigh."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import psutil
import pytest
from asking import Answer, GrpcClient, Question, ask_grpc
from sentences import sentence
from serving import Serving, eventually, serving
from tasks import Task, lora, write_backbone, write_task

TASKS = (Task("counted", 0, adapter=lora()), Task("counted-too", 1, "embedding"))
SHORT = sentence(20, 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Two tasks."""
    folder = tmp_path_factory.mktemp("account")
    repository = folder / "repository"
    write_backbone(repository)
    for task in TASKS:
        write_task(repository, task)
    with serving(repository, folder) as server:
        assert not server.refused
        yield server


@pytest.fixture
def client(server: Serving) -> Iterator[GrpcClient]:
    """A gRPC client."""
    with server.client() as client:
        yield client


def receipts(answers: list[Answer], column: int) -> float:
    """Seconds, summed."""
    return sum(float(answer.good()["usage"][0, column]) for answer in answers) / 1e6


def quiet_metrics(server: Serving, family: str, task: str, value: float) -> dict[tuple[str, str, str], float]:
    """All samples, once one has come to a value and the rest, published with it, can be taken to have."""
    eventually(lambda: server.metric(family, task) == value, f"{family} of {task} is {value:g}")
    time.sleep(1.5)
    return server.metrics()


def test_metrics_add_up(server: Serving, client: GrpcClient) -> None:
    questions = [Question("counted", (sentence(9, n),) * (1 + n % 3)) for n in range(30)]
    answers = ask_grpc(server.grpc_url, questions, 16)
    late = [client.ask_one("counted", "in a hurry", slo_ms="0.001") for _ in range(4)]
    for _ in range(3):
        assert client.ask_one("counted", b"\xff").status == "INVALID_ARGUMENT"
        assert client.ask_one("counted", "hello", slo_ms="x").status == "INVALID_ARGUMENT"
    found = quiet_metrics(server, "requests_total", "counted", 34)
    assert found["fmplex_items_total", "counted", ""] == 60 + 4
    assert found["fmplex_failures_total", "counted", "invalid"] == 6
    assert found["fmplex_deadline_misses_total", "counted", ""] == 4
    assert found["fmplex_queue_depth", "counted", ""] == 0
    assert found["fmplex_weight", "counted", ""] == 1
    every = answers + late
    assert found["fmplex_queue_seconds_total", "counted", ""] == pytest.approx(receipts(every, 0), abs=1e-3)
    assert found["fmplex_compute_seconds_total", "counted", ""] == pytest.approx(receipts(every, 1), abs=1e-3)
    assert 0 < found["fmplex_service_seconds_total", "counted", ""] <= receipts(every, 1)
    assert found["fmplex_requests_total", "counted-too", ""] == 0


def test_the_backbone_s_metrics_are_the_sums_of_its_vfms(server: Serving) -> None:
    tasks = [task.name for task in TASKS]
    batches = server.metric("backbone_batches_total")
    before = server.metric("requests_total", "counted-too")
    questions = [Question("counted-too", (sentence(5, n),)) for n in range(64)]
    answers = ask_grpc(server.grpc_url, questions, 64)
    found = quiet_metrics(server, "requests_total", "counted-too", before + 64)

    def total(family: str) -> float:
        return sum(found[f"fmplex_{family}", task, ""] for task in tasks)

    assert found["fmplex_backbone_vfms", "", ""] == len(tasks)
    assert found["fmplex_backbone_adapters", "", ""] == sum(task.adapter is not None for task in TASKS)
    assert found["fmplex_backbone_items_total", "", ""] == total("items_total")
    assert found["fmplex_backbone_busy_seconds_total", "", ""] == pytest.approx(
        total("service_seconds_total"), rel=1e-6
    )
    ran = found["fmplex_backbone_batches_total", "", ""] - batches
    assert ran == pytest.approx(sum(1 / answer.batch_items for answer in answers))
    assert found["fmplex_backbone_passes_total", "", ""] >= found["fmplex_backbone_batches_total", "", ""]


# -- memory


def test_nine_more_lora_tasks_weigh_next_to_nothing(server: Serving) -> None:
    """Of the server and the backbone's process; benchmarks/ holds the figure that counts."""

    def warm_mib(tasks: list[str]) -> float:
        """After some requests; short ones, for what a pass needs comes and goes."""
        ask_grpc(server.grpc_url, [Question(tasks[n % len(tasks)], (SHORT,)) for n in range(80)], 8)
        processes = (psutil.Process(server.server.pid), server.stub())
        return sum(process.memory_info().rss for process in processes) / 2**20

    warm_mib(["counted"])
    one = warm_mib(["counted"])
    more = [Task(f"more{number}", 100 + number, adapter=lora(8), seed=number) for number in range(9)]
    for task in more:
        write_task(server.repository, task)
        server.load(task.name)
    ten = warm_mib(["counted", *(task.name for task in more)])
    assert ten / one < 1.03
    for task in more:
        server.unload(task.name)
        shutil.rmtree(server.repository / task.name)
