"""What a server says it did adds up with what was sent, and what many tasks weigh."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from asking import ask_grpc
from sentences import sentence
from waiting import published

from testing.adapters import lora
from testing.clients import Answer, GrpcClient, Question
from testing.repositories import Task, write_backbone, write_task
from testing.servers import Serving, eventually, serving

TASKS = (
    Task("counted", 0, adapter=lora()),
    Task("counted-too", 1, "embedding"),
    Task("bystander", 2, "embedding"),
    Task("long", 3, "embedding", encoder={"windows": 64, "max_length": 64}, parameters={"max_queue_bytes": "60000000"}),
)
SHORT = sentence(20, 0)
WORD = "x" * 50_000_000  # its tokens take a core half a minute
WINDOWS = tuple(sentence(4000, seed) for seed in range(8))  # 32,768 tokens: 16 batches


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Two tasks whose requests are counted, and one that is only refused."""
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


def metrics_after(server: Serving, family: str, task: str, value: float) -> dict[tuple[str, str, str], float]:
    """All samples, published after one of them has come to a value."""
    eventually(lambda: server.metric(family, task) == value, f"{family} of {task} is {value:g}")
    return published(server, "bystander")


def test_metrics_add_up(server: Serving, client: GrpcClient) -> None:
    questions = [Question("counted", (sentence(9, n),) * (1 + n % 3)) for n in range(30)]
    answers = ask_grpc(server.grpc_url, questions, 16)
    late = [client.ask_one("counted", "in a hurry", slo_ms="0.001") for _ in range(4)]
    for _ in range(3):
        assert client.ask_one("counted", b"\xff").status == "INVALID_ARGUMENT"
        assert client.ask_one("counted", "hello", slo_ms="x").status == "INVALID_ARGUMENT"
    found = metrics_after(server, "requests_total", "counted", 34)
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
    found = metrics_after(server, "requests_total", "counted-too", before + 64)

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


# -- one task's requests at their worst


def ask_beside(server: Serving, hostile: Question) -> tuple[Answer, list[Answer]]:
    """The answer to a hostile request, and those to another task's small ones, one by one until then."""
    others: list[Answer] = []
    with server.client() as client, server.client() as small, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.ask, hostile)
        while not asked.done():
            others.append(small.ask_one("counted", SHORT))
        assert not [answer.error for answer in others if answer.error]
        return asked.result(), others


def test_a_text_of_megabytes_holds_up_nobody(server: Serving) -> None:
    answer, others = ask_beside(server, Question("counted-too", (WORD,)))
    assert answer.good()["TRUNCATED"].tolist() == [[True]]
    assert max(other.seconds for other in others) < 5


def test_a_request_of_many_batches_runs_in_portions(server: Serving) -> None:
    answer, others = ask_beside(server, Question("long", WINDOWS))
    assert answer.good()["EMBEDDING"].shape == (8, 384)
    assert len(others) > 8, "they run between its portions"
    assert 1 <= answer.batch_items <= 17
    assert server.metric("preparation_seconds_total", "long") > 0


def test_requests_are_bounded_by_bytes(server: Serving, client: GrpcClient) -> None:
    answer = client.ask_one("long", WORD, WORD)
    assert answer.status == "INVALID_ARGUMENT"
    assert "max_queue_bytes of 'long' is 60000000" in answer.message


# -- memory


def test_nine_more_lora_tasks_weigh_next_to_nothing(server: Serving) -> None:
    """Of the server and the backbone's process; benchmarks/ holds the figure that counts."""

    def warm_mib(tasks: list[str]) -> float:
        """After some requests; short ones, for what a pass needs comes and goes."""
        ask_grpc(server.grpc_url, [Question(tasks[n % len(tasks)], (SHORT,)) for n in range(80)], 8)
        processes = (server.process, server.stub())
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
