"""Fail closed, fail alone: a task that cannot be served says which file, what in it and what to do; others go on."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from changing import Others
from reference import Reference, difference
from sentences import sentence
from typer.testing import CliRunner

from fmplex import Client, ServerProblem
from fmplex.cli import app as commands
from fmplex_backend.status import BackboneStatus
from testing.adapters import lora
from testing.breaking import ADAPTER, edit_entry
from testing.clients import GrpcClient
from testing.models import minilm
from testing.repositories import Task, write_backbone, write_entry, write_task, write_version
from testing.servers import Serving, eventually, serving

TEXTS = [sentence(n, n) for n in range(1, 12)]
GOOD = (Task("good-head", 0), Task("good-lora", 1, adapter=lora()))
TWINS = (Task("twin-old", 84, adapter=lora(), seed=1), Task("twin-new", 84, adapter=lora(), seed=2))


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with two tasks that nothing is done to."""
    folder = tmp_path_factory.mktemp("refusing")
    repository = folder / "repository"
    write_backbone(repository)
    for good in GOOD:
        write_task(repository, good)
    for twin in TWINS:
        write_task(repository, twin)
    with serving(repository, folder) as server:
        assert not server.refused
        yield server


@pytest.fixture
def client(refusing: Serving) -> Iterator[GrpcClient]:
    """One that asks by hand."""
    with refusing.client() as client:
        yield client


@pytest.fixture(scope="module")
def others(refusing: Serving) -> Others:
    """The good tasks."""
    return Others.of(refusing, GOOD, TEXTS)


@pytest.fixture(autouse=True)
def others_go_on(others: Others) -> Iterator[None]:
    """Clients of the good tasks."""
    with others.go_on(answers=2):
        yield


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


def test_of_two_with_one_tag_at_the_start_the_older_is_served(refusing: Serving, client: GrpcClient) -> None:
    old = Reference(minilm(), refusing.repository / "twin-old" / "1")
    eventually(lambda: not client.ask_one("twin-old", TEXTS[0]).error, "the older is served")
    assert not difference(client.ask_one("twin-old", TEXTS[0]).good(), 0, old(TEXTS[0]))
    assert client.ask_one("twin-new", TEXTS[0]).error
    assert not refusing.has("twin-new")


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


# -- what is said of it


def cli(*arguments: Any, code: int = 0) -> Any:
    """What `fmplex ... --json` prints."""
    done = CliRunner().invoke(commands.app, [*map(str, arguments), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


@pytest.fixture(params=["gRPC", "HTTP"])
def own(refusing: Serving, request: pytest.FixtureRequest) -> Iterator[Client]:
    """FMplex's client, over each protocol."""
    url = refusing.grpc_url if request.param == "gRPC" else f"http://{refusing.http_url}"
    with Client(url, timeout=60) as client:
        yield client


def test_a_link_to_nowhere_is_named(refusing: Serving, own: Client) -> None:
    """Triton lists no model beside one."""
    link = refusing.repository / "dangling"
    link.symlink_to("nowhere")
    try:
        with pytest.raises(ServerProblem, match=f"cannot list its models: {link} is a link that leads nowhere"):
            own.tasks()
    finally:
        link.unlink()
    assert own.tasks()


def test_a_refused_task_does_not_look_healthy(refusing: Serving, own: Client) -> None:
    task = Task("unwell", 90)
    weights = write_task(refusing.repository, task) / "1" / "decoder.safetensors"
    weights.write_bytes(b"short")
    server = ("--server", own.url)
    with pytest.raises(ServerProblem, match=r"'unwell' is refused: .*unwell/1/decoder\.safetensors"):
        own.load("unwell")
    assert own.ready("unwell"), "Triton has loaded its entry"
    told = own.tasks()
    assert (told["unwell"].state, told["unwell"].tag) == ("refused", 90)
    assert "decoder.safetensors" in told["unwell"].error
    assert all(told[good.name].healthy for good in GOOD)
    assert "minilm" not in told
    rows = {row["task"]: row for row in cli("task", "list", "-r", refusing.repository, *server)}
    assert (rows["unwell"]["state"], rows["good-lora"]["state"]) == ("refused", "serving")
    assert "decoder.safetensors" in rows["unwell"]["error"]
    assert "decoder.safetensors" in cli("task", "load", "unwell", *server, code=1)["error"]
    assert cli("task", "show", "unwell", "-r", refusing.repository, *server)["state"] == "refused"
    refusing.unload("unwell")
    assert own.tasks()["unwell"].state == "refused", "also where the server does not send it requests"
    shutil.rmtree(refusing.repository / "unwell")
    eventually(lambda: "unwell" not in own.tasks(), "it is forgotten")


def test_a_task_whose_backbone_is_missing_does_not_vanish(refusing: Serving, own: Client) -> None:
    write_task(refusing.repository, Task("orphan", 91, backbone="elsewhere"))
    with pytest.raises(ServerProblem, match="elsewhere"):
        own.load("orphan")
    assert own.tasks()["orphan"].state == "not served"
    rows = {row["task"]: row for row in cli("task", "list", "-r", refusing.repository, "--server", own.url)}
    assert rows["orphan"]["state"] == "not served"
    assert "does not serve its backbone 'elsewhere'" in rows["orphan"]["error"]
    shutil.rmtree(refusing.repository / "orphan")


def test_after_a_rollback_a_task_is_served(refusing: Serving, own: Client) -> None:
    """Triton's index keeps the version that was unloaded, as UNAVAILABLE."""
    task = Task("turning", 92)
    directory = write_task(refusing.repository, task)
    own.load("turning")
    write_version(directory / "2", replace(task, seed=5))
    own.load("turning")
    assert own.tasks()["turning"].version == 2
    where = ("-r", refusing.repository, "--server", own.url)
    for version in (1, 2, 1):
        assert cli("task", "rollback", "turning", "--to", version, *where)["version"] == version
        told = own.tasks()["turning"]
        assert (told.state, told.version, told.error) == ("serving", version, "")
    (directory / "2" / "task.json").write_text("{")
    assert "2/task.json" in cli("task", "rollback", "turning", "--to", 2, *where, code=1)["error"]
    assert cli("task", "remove", "turning", *where)["removed"]


def test_a_new_version_that_is_refused_is_no_success(refusing: Serving, own: Client) -> None:
    task = Task("former", 93)
    directory = write_task(refusing.repository, task)
    own.load("former")
    (write_version(directory / "2", replace(task, seed=5)) / "decoder.safetensors").write_bytes(b"short")
    with pytest.raises(ServerProblem, match=r"goes on with version 1, its new one is refused: .*former/2/"):
        own.load("former")
    told = own.tasks()["former"]
    assert (told.state, told.version) == ("serving former version", 1)
    refusing.unload("former")
    shutil.rmtree(directory)


def test_the_status_costs_little_and_needs_no_tag(refusing: Serving, own: Client) -> None:
    status = own.status("minilm")
    assert (status.name, status.family, status.scheduler, status.slots) == ("minilm", "text-encoder", "bfq", 256)
    assert {good.name for good in GOOD} <= {task.name for task in status.tasks}
    assert all(task.requests > 0 for task in status.tasks if task.name.startswith("good-"))
    assert status.last_batch_s is not None
    assert status.last_batch_s < 10


def test_any_client_asks_for_it(refusing: Serving) -> None:
    """With curl, over `infer` and over `generate`, which requests every output there is."""
    url = f"http://{refusing.http_url}/v2/models/minilm"
    tensor = {"name": "TASK", "shape": [1, 1], "datatype": "BYTES", "data": ["good-head"]}
    body = {"inputs": [tensor], "outputs": [{"name": "STATUS"}]}
    for path, document in (("infer", body), ("generate", {"TASK": "good-head"})):
        request = urllib.request.Request(f"{url}/{path}", json.dumps(document).encode())
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        text = answer["STATUS"] if path == "generate" else answer["outputs"][0]["data"][0]
        (task,) = BackboneStatus.model_validate_json(text).tasks
        assert (task.name, task.state) == ("good-head", "serving")
