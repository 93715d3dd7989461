"""Fail closed, fail alone: a task that cannot be served says which file, what in it and what to do; others go on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from asking import Answer, GrpcClient, Hammer, Question
from breaking import ADAPTER, CASES, Case, edit_entry
from reference import Reference, difference, minilm
from sentences import sentence
from serving import Serving, eventually, serving
from tasks import Task, lora, write_backbone, write_entry, write_task, write_version

TEXTS = [sentence(n, n) for n in range(1, 12)]
GOOD = (Task("good-head", 0), Task("good-lora", 1, adapter=lora()))
SPOILT_VERSIONS = (
    "no-task-json",
    "task-json-cut",
    "unknown-decoder",
    "foreign",
    "head-nan",
    "head-narrow",
    "adapter-cut",
    "adapter-foreign",
    "adapter-kind",
)
TAGS = {case.name: 10 + number for number, case in enumerate(CASES)}


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server that found all those tasks broken when it started, and two that are not."""
    folder = tmp_path_factory.mktemp("refusing")
    repository = folder / "repository"
    write_backbone(repository)
    for good in GOOD:
        write_task(repository, good)
    for case in CASES:
        task = Task(case.name, TAGS[case.name], adapter=case.adapter, parameters={"weight": "1.5"})
        case.spoil(write_task(repository, task))
    with serving(repository, folder) as server:
        assert not server.refused
        yield server


@pytest.fixture
def client(refusing: Serving) -> Iterator[GrpcClient]:
    """One that asks by hand."""
    with refusing.client() as client:
        yield client


@pytest.fixture(autouse=True)
def others_go_on(refusing: Serving) -> Iterator[None]:
    """Clients of the good tasks."""
    references = {task.name: Reference(minilm(), refusing.repository / task.name / "1") for task in GOOD}
    for reference in references.values():
        for text in TEXTS:
            reference(text)

    def check(question: Question, answer: Answer) -> str:
        return difference(answer.outputs, 0, references[question.task](str(question.texts[0])))

    questions = [Question(task.name, (text,)) for task in GOOD for text in TEXTS]
    with Hammer(refusing.grpc_url, questions, check, clients=2) as hammer:
        hammer.wait_for(2)
        yield
        hammer.wait_for(2)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_broken_task_names_file_field_and_remedy(client: GrpcClient, case: Case) -> None:
    answer = client.ask_one(case.name, "hello")
    assert answer.status == "INTERNAL"
    missing = [words for words in (case.name, *case.says) if words not in answer.message]
    assert not missing, f"{missing} not in: {answer.message}"


def test_refusals_are_counted(refusing: Serving, client: GrpcClient) -> None:
    before = refusing.metric("failures_total", "no-head", "refused")
    for _ in range(3):
        assert client.ask_one("no-head", "hello").error
    eventually(
        lambda: refusing.metric("failures_total", "no-head", "refused") == before + 3, "three more refusals on /metrics"
    )


def test_a_broken_task_heals_when_its_file_comes(refusing: Serving, client: GrpcClient, tmp_path: Path) -> None:
    task = Task("healing", 80, adapter=lora())
    directory = write_task(refusing.repository, task)
    weights = directory / "1" / ADAPTER
    aside = weights.rename(tmp_path / "weights")
    refusing.load("healing")
    assert ADAPTER in client.ask_one("healing", TEXTS[0]).message
    shutil.copy(aside, weights.with_name("arriving"))
    weights.with_name("arriving").rename(weights)
    eventually(lambda: not client.ask_one("healing", TEXTS[0]).error, "it is served")
    reference = Reference(minilm(), directory / "1")
    assert not difference(client.ask_one("healing", TEXTS[0]).good(), 0, reference(TEXTS[0]))


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in SPOILT_VERSIONS], ids=lambda case: str(case.name)
)
def test_a_broken_new_version_leaves_the_old_one_serving(
    refusing: Serving, client: GrpcClient, tmp_path: Path, case: Case
) -> None:
    """Whole again under the next number, it is served."""
    task = Task(f"versions-{case.name}", 90, adapter=lora(), seed=1)
    directory = write_task(refusing.repository, task)
    refusing.load(task.name)
    old = Reference(minilm(), directory / "1")(TEXTS[3])
    try:
        assert not difference(client.ask_one(task.name, TEXTS[3]).good(), 0, old)
        write_version(tmp_path / "1", replace(task, adapter=case.adapter or lora(4), seed=2))
        case.spoil(tmp_path)
        (tmp_path / "1").rename(directory / "2")
        refusing.load(task.name)
        for _ in range(5):
            assert not difference(client.ask_one(task.name, TEXTS[3]).good(), 0, old)
    finally:
        refusing.unload(task.name)
        shutil.rmtree(directory)


def test_a_tag_beyond_the_slots(refusing: Serving, client: GrpcClient) -> None:
    """Triton itself refuses it at load: the backbone has no such output."""
    task = Task("beyond", 5000)
    directory = write_task(refusing.repository, task)
    with pytest.raises(Exception, match="VFM_5000"):
        refusing.load("beyond")
    assert client.ask_one("beyond", "hello").error
    shutil.rmtree(directory)


def test_two_tags_in_one_entry(refusing: Serving, client: GrpcClient) -> None:
    task = Task("two-tags", 81)
    directory = write_task(refusing.repository, task)
    edit_entry("} } ] }", '}\noutput_map { key: "VFM_82" value: "usage2" } } ] }')(directory)
    usage = 'output { name: "usage" data_type: TYPE_INT64 dims: [ 3 ] }'
    edit_entry(usage, usage + "\n" + usage.replace("usage", "usage2"))(directory)
    refusing.load("two-tags")
    answer = client.ask_one("two-tags", "hello")
    assert answer.error
    assert "two-tags" in answer.message or "tasks' tags" in answer.message
    refusing.unload("two-tags")
    shutil.rmtree(directory)


def test_a_changed_entry_that_is_wrong(refusing: Serving, client: GrpcClient) -> None:
    """The terms of a running task are spoilt, then put right."""
    task = Task("spoilt", 83)
    directory = write_task(refusing.repository, task)
    refusing.load("spoilt")
    client.ask_one("spoilt", "hello").good()
    write_entry(directory, replace(task, parameters={"weight": "none"}))
    eventually(lambda: "parameters.weight" in client.ask_one("spoilt", "hello").message, "it is refused")
    write_entry(directory, replace(task, parameters={"weight": "2"}))
    eventually(lambda: not client.ask_one("spoilt", "hello").error, "it is served")
    refusing.unload("spoilt")
    shutil.rmtree(directory)
