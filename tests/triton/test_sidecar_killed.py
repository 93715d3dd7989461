"""The controller is killed at random moments among changes and meets hostile directories; `fmplex serve` is killed."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from reference import Reference, difference

from fmplex_backend.repository.writer import LOCK
from testing.adapters import lora
from testing.clients import GrpcClient, Outputs
from testing.controllers import controller
from testing.hostile_directories import Directories, Hostile, has_its_reason, same_bits
from testing.models import minilm
from testing.repositories import Task, build, write_backbone, write_task
from testing.serve_command import serve_command
from testing.servers import Serving, eventually, serving

pytestmark = pytest.mark.slow

TEXT = "How many people live in Iceland?"
GOOD = (Task("sentiment", 0, adapter=lora()), Task("entities", 1, "token-classification", adapter=lora(4)))
NAMES = tuple(f"changing{number}" for number in range(6))
FIRST_TAG = 10
KILLS, DIRECTORIES, WAVE = 20, 500, 25
SETTLED_S = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Without a controller."""
    folder = tmp_path_factory.mktemp("killed")
    repository = folder / "repository"
    write_backbone(repository)
    for good in GOOD:
        write_task(repository, good)
    with serving(repository, folder) as server:
        assert not server.refused
        yield server


# -- the controller is killed


def change_one(repository: Path, aside: Path, chance: random.Random, number: int) -> None:
    """A task comes, goes, is given another version in place, or is kept unloaded."""
    name = chance.choice(NAMES)
    directory = repository / name
    if not directory.exists():
        # Sometimes with another's tag, or without a config: the controller gives it what it lacks.
        task = Task(name, chance.choice((0, FIRST_TAG + number)), adapter=lora(), seed=number)
        built = build(aside / f"{name}-{number}", task)
        if chance.random() < 0.3:
            (built / "config.pbtxt").unlink()
        built.rename(directory)
        return
    match chance.randrange(4):
        case 0:
            shutil.rmtree(directory)
        case 1:
            (directory / "UNLOADED").touch()
        case 2:
            (directory / "UNLOADED").unlink(missing_ok=True)
        case _:
            newer = build(aside / f"{name}-{number}", Task(name, FIRST_TAG, adapter=lora(), seed=number))
            for file in sorted((newer / "1").rglob("*.safetensors")):
                os.replace(file, directory / file.relative_to(newer))


def is_served_as_it_is(server: Serving, name: str) -> bool:
    """The server has what the repository holds, and answers by it."""
    directory = server.repository / name
    if not directory.exists() or (directory / "UNLOADED").exists():
        return not server.has(name)
    if not server.has(name):
        return False
    with server.client() as client:
        answer = client.ask_one(name, TEXT)
    return not answer.error and not difference(answer.outputs, 0, Reference(minilm(), directory / "1")(TEXT))


def test_killed_among_changes_the_repository_is_what_is_served_in_the_end(server: Serving, tmp_path: Path) -> None:
    chance = random.Random(5)
    for kill in range(KILLS):
        with controller(server):
            end = time.monotonic() + chance.uniform(1.0, 4.0)
            while time.monotonic() < end:
                change_one(server.repository, tmp_path, chance, 100 * kill + chance.randrange(100))
                time.sleep(chance.uniform(0.0, 0.5))
    with controller(server):
        for name in (*NAMES, *(good.name for good in GOOD)):
            eventually(lambda: is_served_as_it_is(server, name), f"{name} is as it is", SETTLED_S)  # noqa: B023
        known = {*NAMES, *(good.name for good in GOOD), "minilm", LOCK}
        assert {each.name for each in server.repository.iterdir()} <= known, "nothing is left of what was written aside"
        for name in NAMES:
            shutil.rmtree(server.repository / name, ignore_errors=True)
        eventually(lambda: not any(map(server.has, NAMES)), "all are unloaded")


# -- hostile directories


def answers(server: Serving) -> list[Outputs]:
    with server.client() as client:
        return [client.ask_one(good.name, TEXT).good() for good in GOOD]


def entries(server: Serving) -> list[bytes]:
    """Of the good tasks: who is given another tag is not answered until Triton has loaded it again."""
    return [(server.repository / good.name / "config.pbtxt").read_bytes() for good in GOOD]


def test_hostile_directories_are_quarantined_with_a_reason(server: Serving, tmp_path: Path) -> None:
    """And the good tasks' answers stay the same, bit for bit."""
    make = Directories(tmp_path, taken=[task.vfm for task in GOOD])
    before, own, stub = answers(server), entries(server), server.stub().pid
    with controller(server):
        for start in range(0, DIRECTORIES, WAVE):
            put: list[Hostile] = []
            for place, seed in enumerate(range(start, start + WAVE)):
                with contextlib.suppress(OSError):  # a name that two seeds give, or that is too long
                    put.append(make.put(server.repository, seed, FIRST_TAG + place))
            for each in put:
                eventually(lambda: has_its_reason(server, each), f"{each.path!r} ({each.what})", SETTLED_S)  # noqa: B023
            assert all(map(same_bits, before, answers(server)))
            assert entries(server) == own
            for each in put:
                each.remove()
    assert server.stub().pid == stub


# -- `fmplex serve` is killed


def test_serve_killed_leaves_no_process_and_no_lock(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_backbone(repository)
    write_task(repository, GOOD[0])
    for _ in range(2):
        with serve_command(repository, tmp_path) as command:
            assert is_asked(command.grpc_url)
            serve = psutil.Process(command.process.pid)
            three = "tritonserver, the backbone's process and the controller"
            eventually(lambda: len(serve.children(recursive=True)) >= 3, three)  # noqa: B023
            family = serve.children(recursive=True)
            command.process.send_signal(signal.SIGKILL)
            command.process.wait(10)
            _, left = psutil.wait_procs(family, timeout=15)
            assert not left


def is_asked(grpc_url: str) -> bool:
    with GrpcClient(grpc_url) as client:
        return not client.ask_one(GOOD[0].name, TEXT).error
