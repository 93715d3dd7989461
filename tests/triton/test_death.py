"""A thread of the backbone that dies takes the process with it, and every request gets an answer first.

The threads die by code that only these tests bring into the backbone's process.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from asking import ask_grpc
from exits import exit_status
from reference import Reference, difference
from sentences import sentence
from stub_environment import make_environment, patch_module

from testing.adapters import lora
from testing.clients import Answer, GrpcClient, Question
from testing.models import minilm
from testing.repositories import Task, write_backbone, write_task
from testing.servers import Serving, eventually, serving

TEXT = sentence(50, 1)
CLIENTS = 64
# Where a thread's loop passes through: (module, class, method).
ROLES = {
    "engine": ("fmplex_backend.serving.engine", "Engine", "step"),
    "reply": ("fmplex_backend.serving.replies", "Lane", "_decode"),
    "watch": ("fmplex_backend.serving.loader", "Loader", "refresh"),
}
PATCH = """
    import importlib

    def die(trigger, real):
        def dying(self, *args, **kwargs):
            if os.path.exists(trigger):
                raise ArithmeticError("made to die")
            return real(self, *args, **kwargs)

        return dying

    for role, (name, kind, method) in {roles!r}.items():
        owner = getattr(importlib.import_module(name), kind)
        setattr(owner, method, die({folder!r} + "/" + role, getattr(owner, method)))
"""


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server whose backbone's threads die when a file of their name appears in `folder`."""
    folder = tmp_path_factory.mktemp("mortal")
    repository = folder / "repository"
    write_backbone(repository, threads="1")
    write_task(repository, Task("plain", 0))
    write_task(repository, Task("adapted", 1, adapter=lora()))
    variables = make_environment(folder / "environment")
    patch = PATCH.format(roles=ROLES, folder=str(folder))
    patch_module(folder / "environment", "fmplex_backend.serving.service", patch)
    quick = ("--exit-timeout-secs=3",)  # requests that SIGKILL left unanswered hold up the end
    with serving(repository, folder, variables=variables, extra=quick) as server:
        assert not server.refused
        yield server


@pytest.fixture(autouse=True)
def is_alive(mortal: Serving) -> None:
    """Starts a Triton again that has ended: 2.51 at times does when a stub is killed (boost's lock_exception)."""
    with suppress(subprocess.TimeoutExpired):
        mortal.server.wait(timeout=0)
        mortal.server.restart()
        mortal.server.wait_ready()


def revive(server: Serving) -> None:
    """Unload and load: what an operator does; a load alone is ignored by Triton."""
    for model in ("plain", "adapted", "minilm"):
        server.unload(model)
    for model in ("minilm", "plain", "adapted"):
        server.load(model)


def ask_all(server: Serving) -> list[Answer]:
    """A closed round of 64 clients."""
    questions = [Question("plain" if n % 2 else "adapted", (TEXT, TEXT)) for n in range(CLIENTS)]
    return ask_grpc(server.grpc_url, questions, CLIENTS)


@pytest.mark.parametrize("role", ["engine", pytest.param("reply", marks=pytest.mark.slow)])
def test_every_request_is_answered_and_the_process_ends(mortal: Serving, role: str) -> None:
    process = mortal.stub()
    trigger = mortal.repository.parent / role
    try:
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask_all, mortal)
            trigger.touch()
            answers = asking.result(timeout=90)
        eventually(lambda: exit_status(process) is not None, f"the backbone ends without its {role} thread")
        assert exit_status(process) == 70
    finally:
        trigger.unlink()
        revive(mortal)
    assert [answer.message for answer in answers if answer.status == "DEADLINE_EXCEEDED"] == []
    said = [
        answer.message
        for answer in answers
        if re.search(rf"the {role}(-\d)? thread of backbone 'minilm' died", answer.message)
    ]
    assert said, [answer.message for answer in answers][:3]
    check(mortal, answers)
    answers = ask_all(mortal)
    assert [answer.message for answer in answers if answer.error] == []
    check(mortal, answers)


def test_a_look_at_the_repository_that_raises_is_not_the_end(mortal: Serving) -> None:
    process, trigger = mortal.stub(), mortal.repository.parent / "watch"
    other = mortal.repository / "unrelated"
    trigger.touch()
    try:
        other.mkdir()  # a change to follow
        eventually(lambda: "made to die" in mortal.log.read_text(errors="replace"), "the repository is looked at")
        answers = ask_all(mortal)
    finally:
        trigger.unlink()
        other.rmdir()
    assert [answer.message for answer in answers if answer.error] == []
    assert mortal.stub() == process


def check(server: Serving, answers: list[Answer]) -> None:
    """What is no error is right."""
    for task in ("adapted", "plain"):
        expected = Reference(minilm(), server.repository / task / "1")(TEXT)
        for answer in answers[task == "plain" :: 2]:
            if not answer.error:
                assert not difference(answer.outputs, 1, expected)


def test_killed_from_outside_it_can_be_brought_back(mortal: Serving) -> None:
    """SIGKILL leaves what was in flight unanswered in this Triton, but nothing may hang after it was loaded again."""
    done = threading.Event()

    def ask_until_done(client: GrpcClient) -> int:
        failures = 0
        while not done.is_set():
            failures += bool(client.ask(Question("plain", (TEXT,)), timeout=5).error)
        return failures

    with mortal.client() as client, ThreadPoolExecutor(4) as pool:
        counts = [pool.submit(ask_until_done, client) for _ in range(4)]
        try:
            mortal.stub().kill()
            eventually(lambda: bool(client.ask(Question("plain", (TEXT,)), timeout=5).error), "Triton notices")
        finally:
            done.set()
        assert sum(count.result(timeout=60) for count in counts) > 0
    revive(mortal)
    before = mortal.metric("requests_total", "plain")
    with mortal.client() as client:
        client.ask_one("plain", TEXT).good()
    eventually(lambda: mortal.metric("requests_total", "plain") == before + 1, "it counts again")
    assert mortal.metric("backbone_vfms") == 2
