"""A thread of the backbone that dies takes the process with it, and every request gets an answer first.

The threads die by code that only these tests bring into the backbone's process.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from asking import Answer, GrpcClient, Question, ask_grpc
from reference import Reference, difference, minilm
from sentences import sentence
from serving import Serving, eventually, serving
from stub_environment import make_environment, patch_module
from tasks import Task, lora, write_backbone, write_task

TEXT = sentence(50, 1)
CLIENTS = 64
# Where a thread's loop passes through: (class, method).
ROLES = {
    "engine": ("fmplex_backend.engine", "Engine", "step"),
    "reply": ("fmplex_backend.service", "Service", "_decode"),
    "loader": ("fmplex_backend.loader", "Loader", "refresh"),
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
    patch_module(folder / "environment", "fmplex_backend.service", patch)
    quick = ("--exit-timeout-secs=3",)  # requests that SIGKILL left unanswered hold up the end
    with serving(repository, folder, variables=variables, extra=quick) as server:
        assert not server.refused
        yield server


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


def status(process: psutil.Process) -> int | None:
    """The exit status of a process that its parent has not waited for; None while it lives."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[-1]) >> 8 if fields[0] == "Z" else None


@pytest.mark.parametrize("role", list(ROLES))
def test_every_request_is_answered_and_the_process_ends(mortal: Serving, role: str) -> None:
    process = mortal.stub()
    trigger = mortal.repository.parent / role
    try:
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask_all, mortal)
            trigger.touch()
            wake(mortal)
            answers = asking.result(timeout=90)
        eventually(lambda: status(process) is not None, f"the backbone ends without its {role} thread")
        assert status(process) == 70
    finally:
        trigger.unlink()
        revive(mortal)
    assert [answer.message for answer in answers if answer.status == "DEADLINE_EXCEEDED"] == []
    said = [answer.message for answer in answers if f"the {role} thread of backbone 'minilm' died" in answer.message]
    assert said or role == "loader", [answer.message for answer in answers][:3]
    check(mortal, answers)
    answers = ask_all(mortal)
    assert [answer.message for answer in answers if answer.error] == []
    check(mortal, answers)


def wake(server: Serving) -> None:
    """Something for the loader to look at."""
    other = server.repository / "unrelated"
    other.mkdir()
    (other / "note").write_text("for the watcher")
    shutil.rmtree(other)


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
