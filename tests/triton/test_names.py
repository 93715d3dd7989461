"""Names and entries of every kind in a repository: good UTF-8 ones are served, the others cost nobody else anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from changing import Others
from hostile import ENTRIES, STRINGS, TASK_JSON, put_strings
from sentences import sentence
from waiting import published

from fmplex import Backbone, Client, Embedder, Label
from fmplex import Task as Deployed
from testing.adapters import lora
from testing.clients import GrpcClient
from testing.repositories import Task, write_backbone, write_task
from testing.servers import Serving, eventually, serving

BACKBONE = "bâse"
LABELS = ["né", "任务", "🙂"]
TEXTS = tuple(sentence(n, n) for n in range(1, 9))
WEIGHTS = "tête.safetensors"


def task(name: str, vfm: int, **fields: object) -> Task:
    """A task whose labels, and whose weights' file, have names that are not ASCII."""
    return Task(name, vfm, backbone=BACKBONE, options={"labels": LABELS, "weights": WEIGHTS}, **fields)  # type: ignore[arg-type]


def write(repository: Path, each: Task) -> Path:
    """Its version's directory."""
    version = write_task(repository, each) / "1"
    (version / "decoder.safetensors").rename(version / WEIGHTS)
    return version


GOOD = (task("plain", 0), task("tâche", 1, adapter=lora()), task("日本 語", 2))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server that is started on a repository with everything in it."""
    folder = tmp_path_factory.mktemp("names")
    repository = folder / "dépôt"
    write_backbone(repository, BACKBONE)
    for each in GOOD:
        write(repository, each)
    for put in ENTRIES.values():
        put(repository)
    with serving(repository, folder) as server:
        yield server


@pytest.fixture(scope="module")
def others(served: Serving) -> Others:
    """The good tasks."""
    return Others.of(served, GOOD, TEXTS, BACKBONE)


@pytest.fixture(autouse=True)
def others_go_on(others: Others) -> Iterator[None]:
    """Clients of the good tasks."""
    with others.go_on(answers=6):
        yield


@pytest.fixture
def client(served: Serving) -> Iterator[GrpcClient]:
    with served.client() as client:
        yield client


def test_what_is_not_served_is_said_at_the_start(served: Serving) -> None:
    states = {state.name: state for state in served.states}
    assert {name for name, state in states.items() if state.ready} == {BACKBONE, *(each.name for each in GOOD)}
    said = [line for line in served.log.read_text(errors="replace").splitlines() if line.startswith("fmplex: model '")]
    for name, reason in {
        "config-fifo": "config.pbtxt: (whole file): it cannot be read: it is a FIFO, not a regular file. Put a",
        "config-directory": "it is a directory",
        "config-sparse": "larger than 16 MiB",
        "version": "9223372036854775808: (directory): as a version it is beyond",
        "links": "Remove links to directories",
        "x\\xff": "it is not UTF-8",
        "dangling": "it is a link that leads nowhere",
    }.items():
        (line,) = [line for line in said if line.startswith(f"fmplex: model '{name}' is not served: ")]
        assert reason in line


def test_good_names_are_served_over_both_protocols(served: Serving) -> None:
    for url in (served.grpc_url, f"http://{served.http_url}"):
        with Client(url) as client:
            for each in GOOD if url == served.grpc_url else GOOD[:2]:  # no space in a path
                (result,) = client.predict(each.name, [TEXTS[0]])
                assert isinstance(result, Label)
                assert result.label in LABELS


def test_good_names_are_on_metrics(served: Serving) -> None:
    samples = published(served, "tâche")
    assert samples["fmplex_requests_total", "tâche", ""] > 0
    assert samples["fmplex_requests_total", "日本 語", ""] > 0


@pytest.mark.slow
def test_a_task_of_a_good_name_is_deployed(served: Serving) -> None:
    new = Deployed("größe", Backbone(BACKBONE, repository=served.repository), decoder=Embedder())
    new.deploy(served.grpc_url)
    with Client(served.grpc_url) as client:
        (result,) = client.predict("größe", ["né"])
    assert len(result.vector) == 384  # type: ignore[attr-defined]


def test_entries_that_come_while_it_serves(served: Serving, client: GrpcClient) -> None:
    """The same again; a name that is not UTF-8 in a task that is served; then a good task."""
    late = served.repository.parent / "late"
    late.mkdir()
    for put in ENTRIES.values():
        put(late)
    for name in os.listdir(os.fsencode(late)):
        os.rename(os.fsencode(late) + b"/" + name, os.fsencode(served.repository) + b"/late " + name)
    version = served.repository / "tâche" / "1"
    (version / os.fsdecode(b"y\xff")).write_text("x")
    (version / "né.txt").write_text("x")
    new = task("après", 50)
    write(served.repository, new)
    served.load(new.name)
    client.ask_one(new.name, "hello").good()
    served.unload(new.name)


@pytest.mark.parametrize("name", TASK_JSON)
def test_a_task_json_that_cannot_be_read(served: Serving, client: GrpcClient, name: str) -> None:
    bad = task(f"json {name}", 100 + list(TASK_JSON).index(name))
    file = write(served.repository, bad) / "task.json"
    file.unlink()
    TASK_JSON[name](file)
    served.load(bad.name)
    eventually(lambda: f"{bad.name}/1/task.json: " in client.ask_one(bad.name, "hello").message, "it is refused")
    served.unload(bad.name)


@pytest.mark.parametrize("name", STRINGS)
def test_strings_that_are_no_text_or_no_path(served: Serving, client: GrpcClient, name: str) -> None:
    bad = task(f"string {name}", 150 + list(STRINGS).index(name))
    file = write(served.repository, bad) / "task.json"
    put_strings(file, STRINGS[name])
    served.load(bad.name)
    eventually(lambda: f"{bad.name}/1" in client.ask_one(bad.name, "hello").message, "it is refused")
    served.unload(bad.name)


@pytest.mark.parametrize("file", [WEIGHTS, "adapter/adapter_config.json", "adapter/adapter_model.safetensors"])
def test_weights_that_nobody_writes_to(served: Serving, client: GrpcClient, file: str) -> None:
    """A FIFO: to open it in the usual way would take for ever."""
    bad = task(f"fifo {Path(file).name}", 200 + len(file), adapter=lora())
    path = write(served.repository, bad) / file
    path.unlink()
    os.mkfifo(path)
    served.load(bad.name)
    eventually(lambda: "it is a FIFO" in client.ask_one(bad.name, "hello").message, "it is refused")
    served.unload(bad.name)
