"""The life of a task on a server under load: every test runs while 16 clients ask other tasks, and check."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from asking import Answer, Check, GrpcClient, Hammer, Question
from reference import Reference, difference, minilm
from sentences import sentence
from serving import Serving, eventually, serving
from tasks import Task, build, lora, write_backbone, write_entry, write_task, write_version

BATCH = 8
TEXTS = tuple(sentence(3 + 2 * n, n) for n in range(12))
LONG = sentence(60, 0)


def small(name: str, vfm: int, **fields: Any) -> Task:
    """A task on a backbone of small batches."""
    return Task(name, vfm, max_batch_size=BATCH, **fields)


STEADY = (small("steady-head", 0), small("steady-lora", 1, adapter=lora(8)))
COUNTED_SECONDS = 2.5  # of counting answers


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with small batches, so that two tasks are easily backlogged."""
    folder = tmp_path_factory.mktemp("life")
    repository = folder / "repository"
    write_backbone(repository, max_batch_size=BATCH, threads="1")
    for task in STEADY:
        write_task(repository, task)
    with serving(repository, folder) as server:
        assert not server.refused
        yield server


@pytest.fixture(scope="module")
def steady(life: Serving) -> Check:
    """Checks the answers of the tasks that stay."""
    return checks({task.name: Reference(minilm(), life.repository / task.name / "1") for task in STEADY})


@pytest.fixture(autouse=True)
def under_load(life: Serving, steady: Check) -> Iterator[Hammer]:
    """Clients of the tasks that stay; not one of their requests may fail, and the backbone's process stays too."""
    questions = [Question(task.name, (text,)) for task in STEADY for text in TEXTS]
    before = life.stub().pid
    with Hammer(life.grpc_url, questions, steady, clients=16) as hammer:
        hammer.wait_for(20)
        yield hammer
        hammer.wait_for(20)
    assert life.stub().pid == before
    assert hammer.slowest < 10


@pytest.fixture
def client(life: Serving) -> Iterator[GrpcClient]:
    """One that asks by hand."""
    with life.client() as client:
        yield client


def checks(references: dict[str, Reference]) -> Check:
    """Compares with references, which are worked out now."""
    for reference in references.values():
        for text in (*TEXTS, LONG):
            reference(text)

    def check(question: Question, answer: Answer) -> str:
        return difference(answer.outputs, 0, references[question.task](str(question.texts[0])))

    return check


def drop(server: Serving, task: Task) -> Reference:
    """Put the directory there and load it."""
    version = write_task(server.repository, task) / "1"
    server.load(task.name)
    return Reference(minilm(), version)


def remove(server: Serving, task: str) -> None:
    """As a user does: unload, then delete."""
    server.unload(task)
    shutil.rmtree(server.repository / task)


@contextlib.contextmanager
def dropped(server: Serving, task: Task) -> Iterator[Reference]:
    """A task for as long as the block lasts."""
    try:
        yield drop(server, task)
    finally:
        remove(server, task.name)


def test_the_first_answer_of_a_dropped_task_is_right(life: Serving, client: GrpcClient) -> None:
    for number in range(4):
        task = small(f"new{number}", 10 + number, adapter=lora(4 << number), seed=number)
        with dropped(life, task) as reference:
            answer = client.ask_one(task.name, TEXTS[number])
            assert not difference(answer.good(), 0, reference(TEXTS[number]))


def test_a_tag_and_a_slot_used_again_have_nothing_of_their_former_task(life: Serving, client: GrpcClient) -> None:
    eventually(lambda: life.metric("backbone_adapters") == 1, "only the steady adapter is left")
    for seed, adapter in enumerate((lora(8, "query", "key"), lora(5, "query"), lora(8), lora(7, "value"), lora(6))):
        tasks = [small(f"again{n}", 20 + n, adapter=adapter, seed=10 * seed + n) for n in range(2)]
        with contextlib.ExitStack() as stack:
            references = [stack.enter_context(dropped(life, task)) for task in tasks]
            for task, reference in zip(tasks, references, strict=True):
                answer = client.ask_one(task.name, TEXTS[0])
                assert not difference(answer.good(), 0, reference(TEXTS[0])), seed
    eventually(lambda: life.metric("backbone_adapters") == 1, "the adapters are gone")
    eventually(lambda: life.metric("backbone_vfms") == 2, "the vFMs are gone")


def test_a_removed_task_is_answered_with_an_error(life: Serving, client: GrpcClient) -> None:
    with dropped(life, small("leaving", 30, adapter=lora())):
        client.ask_one("leaving", "hello").good()
    assert client.ask_one("leaving", "hello").status in ("NOT_FOUND", "UNAVAILABLE")


def test_a_directory_that_is_deleted_while_loaded(life: Serving, client: GrpcClient) -> None:
    """The bare backbone must not answer in its place."""
    drop(life, small("vanishing", 31, adapter=lora()))
    client.ask_one("vanishing", "hello").good()
    shutil.rmtree(life.repository / "vanishing")
    eventually(lambda: bool(client.ask_one("vanishing", "hello").error), "the task is not served any more")
    answer = client.ask_one("vanishing", "hello")
    assert answer.status == "INVALID_ARGUMENT"
    assert "VFM_31 is no task's tag" in answer.message
    life.unload("vanishing")


def shows(server: Serving, family: str, task: str, value: float) -> bool:
    """Whether /metrics says so."""
    return server.metric(family, task) == value


def rates(*hammers: Hammer) -> list[int]:
    """Answers within some seconds."""
    before = [hammer.total for hammer in hammers]
    time.sleep(COUNTED_SECONDS)
    return [hammer.total - was for hammer, was in zip(hammers, before, strict=True)]


def test_a_changed_weight_changes_the_shares(life: Serving) -> None:
    tasks = [small("heavy-a", 40, adapter=lora()), small("heavy-b", 41, seed=3)]
    with contextlib.ExitStack() as stack:
        check = checks({task.name: stack.enter_context(dropped(life, task)) for task in tasks})
        questions = [[Question(task.name, (LONG,))] for task in tasks]
        first, second = (stack.enter_context(Hammer(life.grpc_url, one, check, clients=24)) for one in questions)
        for weight_a, weight_b, low, high in (("1", "1", 0.75, 1.33), ("3", "1", 2.3, 3.9), ("1", "2", 0.37, 0.68)):
            for task, weight in zip(tasks, (weight_a, weight_b), strict=True):
                write_entry(life.repository / task.name, replace(task, parameters={"weight": weight}))
                life.load(task.name)
            time.sleep(0.5)
            a, b = rates(first, second)
            assert low < a / b < high, (weight_a, weight_b, a, b)
            eventually(partial(shows, life, "weight", "heavy-a", float(weight_a)), "the weight is on /metrics")


def test_a_changed_slo_is_in_effect(life: Serving, client: GrpcClient) -> None:
    task = small("hurried", 42)
    with dropped(life, task):
        for slo, expected in (("60000", 0), ("0.001", 5), ("60000", 5)):
            write_entry(life.repository / task.name, replace(task, parameters={"slo_ms": slo}))
            life.load(task.name)
            time.sleep(0.3)
            for _ in range(5):
                client.ask_one(task.name, "hello").good()
            eventually(partial(shows, life, "deadline_misses_total", "hurried", expected), f"{expected} misses")
            time.sleep(1.5)
            assert shows(life, "deadline_misses_total", "hurried", expected)


# -- new versions


CHANGING = small("changing", 50, adapter=lora(8), seed=50)
VERSIONS = (
    replace(CHANGING, seed=51, adapter=lora(16, "query", "output.dense"), layers=2),
    replace(CHANGING, seed=52, adapter=lora(8), encoder={"prefix": "classify this text: "}),
    replace(CHANGING, seed=53, adapter=None),
    replace(CHANGING, seed=54, adapter=lora(8, use_dora=True), options={"pooling": "max"}),
    replace(CHANGING, seed=55, adapter=lora(4), encoder={"max_length": 8}),
)


class Change:
    """A task whose clients accept the answers of the versions allowed now, and of no mixture of them."""

    def __init__(self, server: Serving, reference: Reference) -> None:
        self.server = server
        self.allowed = [reference]
        self.directory = server.repository / CHANGING.name

    def check(self, question: Question, answer: Answer) -> str:
        """One version's answer, whole."""
        found = [difference(answer.outputs, 0, reference(str(question.texts[0]))) for reference in self.allowed]
        return "" if "" in found else f"neither version's answer: {found}"

    def arrives(self, hammer: Hammer, version: Path, put: Callable[[], object]) -> None:
        """`put` brings a version: both answers are right until the new one has come, then only that."""
        reference = Reference(minilm(), version)
        for text in TEXTS:
            reference(text)
        self.allowed.append(reference)
        put()
        self.server.load(CHANGING.name)
        with self.server.client() as client:
            expected = reference(TEXTS[5])
            eventually(
                lambda: not difference(client.ask_one(CHANGING.name, TEXTS[5]).good(), 0, expected), "new answers"
            )
        hammer.wait_for(30)  # whatever was on its way has arrived
        self.allowed = [reference]
        hammer.wait_for(30)


@pytest.fixture
def change(life: Serving) -> Iterator[tuple[Change, Hammer]]:
    """The changing task and 8 clients of it."""
    with dropped(life, CHANGING) as reference:
        change = Change(life, reference)
        for text in TEXTS:
            reference(text)
        questions = [Question(CHANGING.name, (text,)) for text in TEXTS]
        with Hammer(life.grpc_url, questions, change.check, clients=8) as hammer:
            hammer.wait_for(10)
            yield change, hammer


def test_a_new_version_is_served_whole(change: tuple[Change, Hammer], tmp_path: Path) -> None:
    changing, hammer = change
    for number, task in enumerate(VERSIONS, start=2):
        built = write_version(tmp_path / str(number), task)
        target = changing.directory / str(number)
        shutil.copytree(built, tmp_path / "moving")
        changing.arrives(hammer, built, partial((tmp_path / "moving").rename, target))


def copy_slowly(source: Path, target: Path, *, backwards: bool) -> None:
    """File by file and in halves, as a slow disk or `scp` would; the server looks on."""
    target.mkdir()
    for file in sorted(source.rglob("*"), reverse=backwards):
        if file.is_file():
            copy = target / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            content = file.read_bytes()
            with copy.open("wb") as stream:
                for part in (content[: len(content) // 2], content[len(content) // 2 :]):
                    stream.write(part)
                    stream.flush()
                    time.sleep(0.1)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_version_that_is_copied_slowly(change: tuple[Change, Hammer], tmp_path: Path, backwards: bool) -> None:
    changing, hammer = change
    built = write_version(tmp_path / "2", VERSIONS[0])
    target = changing.directory / "2"
    changing.arrives(hammer, built, lambda: copy_slowly(built, target, backwards=backwards))


def test_going_back_to_the_old_version(change: tuple[Change, Hammer], tmp_path: Path) -> None:
    changing, hammer = change
    built = write_version(tmp_path / "2", VERSIONS[0])
    target = changing.directory / "2"
    changing.arrives(hammer, built, lambda: shutil.copytree(built, target))
    first = changing.directory / "1"
    changing.arrives(hammer, first, lambda: target.rename(tmp_path / "withdrawn"))


# -- two tasks with one tag


def test_two_tasks_with_one_tag_are_both_refused_until_one_goes(life: Serving, client: GrpcClient) -> None:
    first, second = small("twin-a", 60, adapter=lora(), seed=1), small("twin-b", 60, adapter=lora(), seed=2)
    with dropped(life, first) as reference:
        client.ask_one("twin-a", TEXTS[0]).good()
        with dropped(life, second):
            eventually(lambda: bool(client.ask_one("twin-a", TEXTS[0]).error), "both are refused")
            for name, other in (("twin-a", "twin-b"), ("twin-b", "twin-a")):
                answer = client.ask_one(name, TEXTS[0])
                assert answer.status == "INTERNAL"
                assert f"VFM_60 is the tag of '{other}' too" in answer.message or f"'{name}' too" in answer.message
                assert {"twin-a", "twin-b"} <= set(answer.message.replace("/", " ").replace("'", " ").split())
        eventually(lambda: not client.ask_one("twin-a", TEXTS[0]).error, "the one that is left is served again")
        assert not difference(client.ask_one("twin-a", TEXTS[0]).good(), 0, reference(TEXTS[0]))


def test_a_task_is_built_beside_and_moved_in(life: Serving, client: GrpcClient, tmp_path: Path) -> None:
    """An entry alone, its version still to come, is refused; the version makes it whole without another load."""
    task = small("late", 61, adapter=lora())
    built = build(tmp_path / "late", task)
    target = life.repository / "late"
    target.mkdir()
    shutil.copy(built / "config.pbtxt", target)
    (target / "1").mkdir()
    life.load("late")
    refused = client.ask_one("late", TEXTS[0])
    assert refused.status == "INTERNAL"
    assert "task.json" in refused.message
    shutil.copytree(built / "1", target / "1", dirs_exist_ok=True)
    eventually(lambda: not client.ask_one("late", TEXTS[0]).error, "the task is whole")
    reference = Reference(minilm(), target / "1")
    assert not difference(client.ask_one("late", TEXTS[0]).good(), 0, reference(TEXTS[0]))
    remove(life, "late")
