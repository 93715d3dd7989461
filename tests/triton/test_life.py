"""The life of a task on a server under load: every test runs while 16 clients ask other tasks, and check."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from asking import Hammer
from changing import Change, Others, checks, remove
from measuring import figure, undisturbed
from reference import Reference, difference
from sentences import sentence
from waiting import published

from testing.adapters import lora
from testing.clients import Answer, GrpcClient, Question
from testing.models import minilm
from testing.repositories import Task, build, write_backbone, write_entry, write_task, write_version
from testing.servers import Serving, eventually, serving

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
def steady(life: Serving) -> Others:
    """The tasks that stay."""
    return Others.of(life, STEADY, TEXTS)


@pytest.fixture(autouse=True)
def under_load(steady: Others) -> Iterator[Hammer]:
    """Clients of the tasks that stay; not one of their requests may fail."""
    with steady.go_on(clients=16, answers=20) as hammer:
        yield hammer


@pytest.fixture
def client(life: Serving) -> Iterator[GrpcClient]:
    """One that asks by hand."""
    with life.client() as client:
        yield client


def drop(server: Serving, task: Task) -> Reference:
    """Put the directory there and load it."""
    version = write_task(server.repository, task) / "1"
    server.load(task.name)
    return Reference(minilm(), version)


@contextlib.contextmanager
def dropped(server: Serving, task: Task) -> Iterator[Reference]:
    """A task for as long as the block lasts."""
    try:
        yield drop(server, task)
    finally:
        remove(server, task.name)


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


@pytest.mark.slow  # the contract measures shares, too
def test_a_changed_weight_changes_the_shares(life: Serving) -> None:
    tasks = [small("heavy-a", 40, adapter=lora()), small("heavy-b", 41, seed=3)]
    with contextlib.ExitStack() as stack:
        texts = [f"{LONG} {number}" for number in range(49)]  # equal ones of a batch would run once
        check = checks({task.name: stack.enter_context(dropped(life, task)) for task in tasks}, texts)
        questions = [[Question(task.name, (text,)) for text in texts] for task in tasks]
        first, second = (stack.enter_context(Hammer(life.grpc_url, one, check, clients=24)) for one in questions)
        for weight_a, weight_b, low, high in (("1", "1", 0.75, 1.33), ("3", "1", 2.3, 3.9), ("1", "2", 0.37, 0.68)):
            for task, weight in zip(tasks, (weight_a, weight_b), strict=True):
                write_entry(life.repository / task.name, replace(task, parameters={"weight": weight}))
                life.load(task.name)
            for task, weight in zip(tasks, (weight_a, weight_b), strict=True):
                eventually(partial(shows, life, "weight", task.name, float(weight)), "the weight is on /metrics")
            for hammer in (first, second):
                hammer.wait_for(24)  # what was queued under the former weights

            def measure(low: float = low, high: float = high) -> None:
                a, b = rates(first, second)
                figure(low < a / b < high, (a, b, low, high))

            undisturbed(measure)


def test_a_changed_slo_is_in_effect(life: Serving, client: GrpcClient) -> None:
    task = small("hurried", 42)
    with dropped(life, task):
        for weight, (slo, expected) in enumerate((("60000", 0), ("0.001", 5), ("60000", 5)), start=2):
            parameters = {"slo_ms": slo, "weight": str(weight)}  # both take effect at once, and the weight is shown
            write_entry(life.repository / task.name, replace(task, parameters=parameters))
            life.load(task.name)
            eventually(partial(shows, life, "weight", task.name, weight), "the entry is in effect")
            for _ in range(5):
                client.ask_one(task.name, "hello").good()
            assert published(life, task.name)["fmplex_deadline_misses_total", task.name, ""] == expected


# -- new versions


CHANGING = small("changing", 50, adapter=lora(8), seed=50)
NEXT = replace(CHANGING, seed=51, adapter=lora(16, "query", "output.dense"), layers=2)


@pytest.fixture
def change(life: Serving) -> Iterator[tuple[Change, Hammer]]:
    """The changing task and 8 clients of it."""
    with dropped(life, CHANGING) as reference:
        change = Change(life, life.repository / CHANGING.name, reference, TEXTS)
        with change.asked() as hammer:
            yield change, hammer


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
    built = write_version(tmp_path / "2", NEXT)
    target = changing.directory / "2"
    changing.arrives(hammer, Reference(minilm(), built), lambda: copy_slowly(built, target, backwards=backwards))


def test_going_back_to_the_old_version(change: tuple[Change, Hammer], tmp_path: Path) -> None:
    changing, hammer = change
    built = write_version(tmp_path / "2", NEXT)
    target = changing.directory / "2"
    changing.arrives(hammer, Reference(minilm(), built), lambda: shutil.copytree(built, target))
    first = changing.directory / "1"
    changing.arrives(hammer, Reference(minilm(), first), lambda: target.rename(tmp_path / "withdrawn"))


# -- two tasks with one tag


def one_of(answer: Answer, *references: Reference) -> bool:
    """An error, or an answer of one of these."""
    return bool(answer.error) or any(not difference(answer.outputs, 0, one(TEXTS[0])) for one in references)


def test_a_copy_of_a_task_leaves_the_original_alone(change: tuple[Change, Hammer]) -> None:
    """With and without the name of its directory, and an editor's directory."""
    changing, hammer = change
    copies = [changing.directory.with_name(name) for name in ("changing.bak", ".changing.swp", "changing-too")]
    for copy in copies:
        shutil.copytree(changing.directory, copy)
    config = copies[-1] / "config.pbtxt"
    config.write_text(config.read_text().replace('name: "changing"', 'name: "changing-too"'))
    try:
        hammer.wait_for(100)
    finally:
        for copy in copies:
            shutil.rmtree(copy)
    hammer.wait_for(30)


def test_a_newcomer_with_a_served_tasks_tag_is_taken_off_the_server(life: Serving, client: GrpcClient) -> None:
    first, second = small("twin-a", 60, adapter=lora(), seed=1), small("twin-b", 60, adapter=lora(), seed=2)
    with dropped(life, first) as reference:
        client.ask_one("twin-a", TEXTS[0]).good()
        write_task(life.repository, second)
        life.load("twin-b")
        for _ in range(40):
            assert client.ask_one("twin-b", TEXTS[0]).error
            answer = client.ask_one("twin-a", TEXTS[0])
            assert one_of(answer, reference)
            assert answer.status in ("", "UNAVAILABLE")
        eventually(lambda: not life.has("twin-b"), "the newcomer is unloaded")
        eventually(lambda: not client.ask_one("twin-a", TEXTS[0]).error, "the one that has the tag goes on")
        for _ in range(20):
            assert not difference(client.ask_one("twin-a", TEXTS[0]).good(), 0, reference(TEXTS[0]))
        assert "task twin-b unloaded" in life.log.read_text()
        shutil.rmtree(life.repository / "twin-b")


def test_a_tag_that_was_another_tasks_is_not_answered_while_the_server_has_both(
    life: Serving, client: GrpcClient
) -> None:
    former, new = small("former", 62, adapter=lora(), seed=3), small("new", 62, adapter=lora(), seed=4)
    was = drop(life, former)
    assert not difference(client.ask_one("former", TEXTS[0]).good(), 0, was(TEXTS[0]))
    built = build(life.repository.parent / "new", new)
    now = Reference(minilm(), built / "1")
    now(TEXTS[0])
    shutil.rmtree(life.repository / "former")
    built.rename(life.repository / "new")
    life.load("new")
    for _ in range(60):
        assert one_of(client.ask_one("new", TEXTS[0]), now)
        assert one_of(client.ask_one("former", TEXTS[0]), was)
    refused = client.ask_one("new", TEXTS[0])
    assert refused.status == "UNAVAILABLE"
    assert "VFM_62 is the tag of 'new', and requests of 'former' may come with it too" in refused.message
    life.unload("former")
    served = 0
    end = time.monotonic() + 15
    while served < 20:
        assert time.monotonic() < end
        answer = client.ask_one("new", TEXTS[0])
        assert one_of(answer, now)
        served += not answer.error
    remove(life, "new")


def test_an_entry_that_is_given_a_served_tasks_tag_in_place_is_not_answered_by_that_task(
    life: Serving, client: GrpcClient
) -> None:
    """Neither of them is asked before, so that the request comes before the watch has told of the entry."""
    keeper, other = small("keeper", 63, adapter=lora(), seed=5), small("other", 64, adapter=lora(), seed=6)
    config = life.repository / "other" / "config.pbtxt"
    with dropped(life, keeper), dropped(life, other) as own:
        before = config.read_text()
        for _ in range(3):
            for name in ("other", "keeper"):  # what comes by its own tag again shows that it has left the other
                eventually(partial(answers, client, name), "both are answered")
            config.write_text(before.replace("VFM_64", "VFM_63"))
            client.load("other")
            assert one_of(client.ask_one("other", TEXTS[0]), own)
            config.write_text(before)
            client.load("other")


def answers(client: GrpcClient, task: str) -> bool:
    return not client.ask_one(task, TEXTS[0]).error


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
