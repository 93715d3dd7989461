"""The controller beside a real server, which follows what happens to the repository; dead processes come back."""

from __future__ import annotations

import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from reference import Reference, difference

from fmplex import Client
from fmplex_controller.sidecar.controller import Controller
from fmplex_controller.sidecar.triton import Triton
from testing.adapters import lora
from testing.clients import Question
from testing.models import minilm
from testing.repositories import Task, build, write_backbone, write_task, write_version
from testing.servers import Serving, eventually, serving

TEXT = "How many people live in Iceland?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with a controller beside it, in a thread."""
    folder = tmp_path_factory.mktemp("sidecar")
    repository = folder / "repository"
    write_backbone(repository, threads="1", vfm_slots="16")
    write_task(repository, Task("steady", 0, adapter=lora()))
    with serving(repository, folder, extra=("--exit-timeout-secs=3",)) as server:
        assert not server.refused
        triton, stop = Triton(server.grpc_url), threading.Event()
        controller = Controller(repository, triton)
        thread = threading.Thread(target=controller.run, args=(stop,))
        thread.start()
        yield server
        stop.set()
        controller.wake()
        thread.join(30)
        triton.close()
        assert not thread.is_alive()


def answers_like(server: Serving, task: str, version: Path) -> bool:
    """Whether a task's answer is that of a version."""
    with server.client() as client:
        answer = client.ask_one(task, TEXT)
    return not answer.error and not difference(answer.outputs, 0, Reference(minilm(), version)(TEXT))


def error_of(server: Serving, task: str) -> str:
    file = server.repository / task / "ERROR.txt"
    return file.read_text() if file.exists() else ""


def test_a_slow_copy_is_loaded_when_it_is_whole_and_changed_and_removed(server: Serving, tmp_path: Path) -> None:
    source = build(tmp_path / "copied", Task("copied", 1, adapter=lora(), seed=1))
    target = server.repository / "copied"
    stub = server.stub().pid
    for file in sorted(source.rglob("*")):
        aside = target / file.relative_to(source)
        if file.is_dir():
            continue
        aside.parent.mkdir(parents=True, exist_ok=True)
        half = file.read_bytes()
        aside.write_bytes(half[: len(half) // 2])
        time.sleep(0.3)
        assert not server.has("copied")
        aside.write_bytes(half)
        time.sleep(0.3)
    eventually(lambda: server.has("copied"), "the copy is loaded")
    assert answers_like(server, "copied", source / "1")
    newer = write_version(tmp_path / "2", Task("copied", 1, adapter=lora(4), seed=2))
    shutil.copytree(newer, target / "2")
    eventually(lambda: answers_like(server, "copied", newer), "the new version")
    with server.client() as client:
        eventually(lambda: bool(client.raw.is_model_ready("copied", "2")), "Triton has the new version")
    shutil.rmtree(target)
    eventually(lambda: not server.has("copied"), "the removed one is unloaded")
    assert server.stub().pid == stub
    assert "quarantined" not in error_of(server, "steady")


def test_a_bad_one_is_quarantined_until_it_is_mended(server: Serving, tmp_path: Path) -> None:
    directory = build(tmp_path / "bad", Task("bad", 2, seed=3))
    whole = (directory / "1" / "task.json").read_text()
    (directory / "1" / "task.json").write_text(whole.replace('"classification"', '"clasification"'))
    headless = build(tmp_path / "headless", Task("headless", 3, seed=3))
    head = (headless / "1" / "decoder.safetensors").read_bytes()
    (headless / "1" / "decoder.safetensors").unlink()
    for each in (directory, headless):
        each.rename(server.repository / each.name)
    eventually(lambda: "task.json: decoder: its kind should be" in error_of(server, "bad"), "file and field are named")
    eventually(lambda: "decoder.safetensors" in error_of(server, "headless"), "what its backbone refuses, too")
    assert not server.has("bad")
    assert not server.has("headless")
    (server.repository / "bad" / "1" / "task.json").write_text(whole)
    (server.repository / "headless" / "1" / "decoder.safetensors").write_bytes(head)
    for name in ("bad", "headless"):
        eventually(lambda: server.has(name) and not error_of(server, name), f"{name} is mended")  # noqa: B023
        assert answers_like(server, name, server.repository / name / "1")
        shutil.rmtree(server.repository / name)


def test_what_an_entry_lacks_is_given_to_it(server: Serving, tmp_path: Path) -> None:
    names = ("copy", "untagged", "automatic", "alone")
    shutil.copytree(server.repository / "steady", server.repository / "copy")  # its name and tag are another's
    untagged = build(tmp_path / "untagged", Task("untagged", 5, seed=5))
    config = (untagged / "config.pbtxt").read_text()
    lines = [line for line in config.splitlines() if "usage" not in line]
    (untagged / "config.pbtxt").write_text("\n".join([*lines, "} ] }"]))
    assert "VFM" not in (untagged / "config.pbtxt").read_text()
    automatic = build(tmp_path / "automatic", Task("automatic", 0, seed=6, backbone="auto"))
    alone = build(tmp_path / "alone", Task("alone", 0, seed=7))
    (alone / "config.pbtxt").unlink()
    for each in (untagged, automatic, alone):
        each.rename(server.repository / each.name)
    for name in names:
        eventually(lambda: server.has(name), f"{name} is loaded")  # noqa: B023
        eventually(lambda: answers_like(server, name, server.repository / name / "1"), f"{name} answers")  # noqa: B023
    tags = [re.findall(r"VFM_\d+", (server.repository / name / "config.pbtxt").read_text()) for name in names]
    assert len({tag for own in tags for tag in own} | {"VFM_0"}) == 5
    assert answers_like(server, "steady", server.repository / "steady" / "1")
    for name in names:
        shutil.rmtree(server.repository / name)
    eventually(lambda: not any(map(server.has, names)), "all are unloaded")


def test_the_file_unloaded_keeps_a_task_unloaded_and_nothing_else_does(server: Serving) -> None:
    write_task(server.repository, Task("off", 6, seed=8))
    eventually(lambda: server.has("off"), "it is loaded")
    server.unload("off")
    assert not server.has("off")
    eventually(lambda: server.has("off"), "it is loaded again")
    (server.repository / "off" / "UNLOADED").touch()
    eventually(lambda: not server.has("off"), "it is unloaded")
    time.sleep(4)
    assert not server.has("off")
    (server.repository / "off" / "UNLOADED").unlink()
    eventually(lambda: server.has("off"), "it is loaded again")
    shutil.rmtree(server.repository / "off")


def test_a_deployed_task_is_not_loaded_twice(server: Serving) -> None:
    write_task(server.repository, Task("deployed", 7, seed=9))
    with Client(server.grpc_url) as client:
        client.load("deployed")
    time.sleep(3)
    log = server.log.read_text(errors="replace")
    assert log.count("loading: deployed:1") == 1
    with Client(server.grpc_url) as client:
        client.unload("deployed")
    shutil.rmtree(server.repository / "deployed")
    time.sleep(3)
    assert server.log.read_text(errors="replace").count("loading: deployed:1") == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_process_that_dies_or_hangs_comes_back(server: Serving, number: signal.Signals) -> None:
    with server.client() as client, ThreadPoolExecutor(4) as pool:
        before = server.stub()
        asked = [pool.submit(client.ask, Question("steady", (TEXT,) * 8), 5) for _ in range(4)]
        before.send_signal(number)
        eventually(lambda: not server.has("steady"), "it is found and unloaded")
        eventually(lambda: server.has("steady"), "it is back", 120)
        for each in asked:
            each.result()
    assert answers_like(server, "steady", server.repository / "steady" / "1")
    assert server.stub().pid != before.pid
