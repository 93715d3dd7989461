"""`fmplex serve`: ready, then SIGTERM among requests: each is answered or refused, and the command exits 0."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from reference import Reference, difference
from sentences import sentence

from fmplex import Client, ServerProblem, Unreachable
from testing.adapters import lora
from testing.clients import Answer, GrpcClient, Question
from testing.models import minilm
from testing.repositories import Task, write_backbone, write_task
from testing.serve_command import ServeCommand, serve_command
from testing.servers import READY_S, eventually

CLIENTS = 64
TEXTS = tuple(sentence(40 + n, n) for n in range(4))
References = dict[str, Reference]
TASKS = (Task("plain", 0), Task("adapted", 1, adapter=lora()))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "repository"
    write_backbone(folder)
    for task in TASKS:
        write_task(folder, task)
    return folder


@pytest.fixture(scope="module")
def references(repository: Path) -> References:
    """What each task's answers to the texts have to be."""
    found = {task.name: Reference(minilm(), repository / task.name / "1") for task in TASKS}
    for reference in found.values():
        for text in TEXTS:
            reference(text)
    return found


@pytest.fixture(scope="module")
def command(repository: Path, references: References) -> Iterator[ServeCommand]:
    """Started as a user does; it has said that it is ready."""
    with serve_command(repository, repository.parent) as command:
        yield command


@dataclass
class Crowd:
    """64 clients, each asking until it is refused; every request is kept with its time and its answer."""

    references: References
    asked: list[tuple[float, str, Answer]] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self, client: GrpcClient) -> None:
        """All at once."""
        for number in range(CLIENTS):
            self.threads.append(threading.Thread(target=self.ask_until_refused, args=(client, number), daemon=True))
            self.threads[-1].start()

    def ask_until_refused(self, client: GrpcClient, number: int) -> None:
        """One client."""
        question = Question(TASKS[number % 2].name, TEXTS)
        while True:
            sent = time.monotonic()
            answer = client.ask(question)
            self.asked.append((sent, question.task, answer))
            if answer.error:
                return

    def join(self) -> None:
        """Nobody may be left waiting."""
        for thread in self.threads:
            thread.join(70)
        assert not any(thread.is_alive() for thread in self.threads)

    def check(self, moment: float) -> None:
        """Right or refused; and what had come in by `moment` is answered."""
        refused = [answer for _, _, answer in self.asked if answer.error]
        assert {answer.status for answer in refused} <= {"UNAVAILABLE", "NOT_FOUND"}, refused[:3]
        assert len(self.asked) - len(refused) > CLIENTS
        for sent, task, answer in self.asked:
            assert answer.seconds < 40
            if answer.error:
                assert sent > moment, f"a request of {moment - sent:g} s before was not drained: {answer.message}"
                continue
            for row, text in enumerate(TEXTS):
                assert not difference(answer.outputs, row, self.references[task](text))


@contextlib.contextmanager
def crowd_at(command: ServeCommand, references: References) -> Iterator[Crowd]:
    """A crowd that is well under way."""
    with GrpcClient(command.grpc_url) as client:
        crowd = Crowd(references)
        crowd.start(client)
        eventually(lambda: len(crowd.asked) >= CLIENTS, "as many answers as clients", seconds=60)
        yield crowd


def test_what_is_killed_is_started_again(command: ServeCommand) -> None:
    """The controller, then tritonserver with all its processes: on the same ports, with the same key."""
    eventually(lambda: command.controller is not None, "the controller has started, which readiness precedes")
    controller, server = command.controller, command.tritonserver
    assert controller
    assert server
    controller.kill()
    eventually(lambda: command.controller not in (None, controller), "there is another controller")
    server.kill()
    with GrpcClient(command.grpc_url) as client:
        key = client.control_headers
        eventually(lambda: not client.ask_one("plain", "hello").error, "it serves again", READY_S)
        assert client.control_headers == key
    assert command.tritonserver not in (None, server)
    assert "tritonserver ended by SIGKILL. It is started again" in command.log.read_text()


def test_a_backbone_is_unloaded_among_requests(command: ServeCommand, references: References) -> None:
    """Its tasks go with it; loaded again, they are back."""
    with crowd_at(command, references) as crowd, GrpcClient(command.grpc_url) as control:
        headers = control.control_headers
        control.raw.unload_model("minilm", headers, unload_dependents=True, client_timeout=60)
        moment = time.monotonic() - 60  # Triton may refuse a request that waits for an unloaded model
        crowd.join()
        crowd.check(moment)
        for name in ("minilm", "plain", "adapted"):
            control.raw.load_model(name, headers, client_timeout=120)
        control.ask_one("plain", "hello").good()


def predict_until_it_is_gone(url: str) -> set[type[ServerProblem]]:
    """What our own client raises until nobody listens any more."""
    raised = set()
    with Client(url, timeout=60, retries=0) as client:
        while True:
            try:
                client.predict("plain", TEXTS[0])
            except ServerProblem as error:
                raised.add(type(error))
                if "no server there" in str(error):
                    return raised


def test_sigterm_among_requests(command: ServeCommand, references: References) -> None:
    with crowd_at(command, references) as crowd, ThreadPoolExecutor(2) as pool:
        ours = [pool.submit(predict_until_it_is_gone, command.grpc_url) for _ in range(2)]
        moment = time.monotonic()
        command.process.send_signal(signal.SIGTERM)
        crowd.join()
        assert [each.result(70) for each in ours] == [{Unreachable}] * 2  # and never "no such task"
    assert command.process.wait(timeout=60) == 0
    assert command.process.stdout
    assert command.process.stdout.read() == ""
    crowd.check(moment - 0.3)  # what was on its way just then may come too late


def test_sigint_while_idle(tmp_path: Path) -> None:
    """Ctrl-C."""
    repository = tmp_path / "repository"
    write_backbone(repository)
    with serve_command(repository, tmp_path) as command:
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(timeout=60) == 0
