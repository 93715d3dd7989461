"""`fmplex serve`: ready, then SIGTERM among requests: each is answered or refused, and the command exits 0."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from reference import Reference, difference
from sentences import sentence

from fmplex import Client, ServerProblem, Unreachable
from fmplex_controller.server.process import free_ports
from fmplex_controller.sidecar.process import MODULE as SIDECAR
from testing.adapters import lora
from testing.clients import Answer, GrpcClient, Question
from testing.models import minilm
from testing.repositories import Task, write_backbone, write_task
from testing.servers import LIVE, READY_S, eventually

CLIENTS = 64
TEXTS = tuple(sentence(40 + n, n) for n in range(4))
TASKS = (Task("plain", 0), Task("adapted", 1, adapter=lora()))


@dataclass
class Command:
    """A running `fmplex serve`."""

    process: subprocess.Popen[str]
    url: str
    log: Path
    references: dict[str, Reference]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """Started as a user does; it has said that it is ready."""
    folder = tmp_path_factory.mktemp("serve")
    repository = folder / "repository"
    write_backbone(repository)
    references = {task.name: Reference(minilm(), write_task(repository, task) / "1") for task in TASKS}
    for reference in references.values():
        for text in TEXTS:
            reference(text)
    http, grpc, metrics = free_ports(3)
    ports = ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
    line = [sys.executable, "-m", "fmplex", "serve", str(repository), *ports]
    log = folder / "server.log"
    LIVE.append(log)
    with log.open("w") as err, subprocess.Popen(line, stdout=subprocess.PIPE, stderr=err, text=True) as process:
        try:
            assert first_line(process) == "ready\n"
            yield Command(process, f"127.0.0.1:{grpc}", log, references)
        finally:
            LIVE.remove(log)
            if process.poll() is None:
                process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    """Of stdout."""
    assert process.stdout
    killer = threading.Timer(READY_S, process.kill)
    killer.start()
    try:
        return process.stdout.readline()
    finally:
        killer.cancel()


@dataclass
class Crowd:
    """64 clients, each asking until it is refused; every request is kept with its time and its answer."""

    command: Command
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
                assert not difference(answer.outputs, row, self.command.references[task](text))


@contextlib.contextmanager
def crowd_at(command: Command) -> Iterator[Crowd]:
    """A crowd that is well under way."""
    with GrpcClient(command.url) as client:
        crowd = Crowd(command)
        crowd.start(client)
        eventually(lambda: len(crowd.asked) >= CLIENTS, "as many answers as clients", seconds=60)
        yield crowd


def children(command: Command) -> list[psutil.Process]:
    """Of the command, those that have ended and are not waited for left out."""
    every = psutil.Process(command.process.pid).children()
    return [child for child in every if child.status() != psutil.STATUS_ZOMBIE]


def beside(command: Command, what: str) -> psutil.Process:
    """The child of the command whose command line holds this."""
    (found,) = [child for child in children(command) if what in " ".join(child.cmdline())]
    return found


def test_what_is_killed_is_started_again(command: Command) -> None:
    """The controller, then tritonserver with all its processes: on the same ports, with the same key."""
    eventually(lambda: len(children(command)) == 2, "the controller has started, which the server's readiness precedes")
    controller, server = beside(command, SIDECAR), beside(command, "tritonserver")
    controller.kill()
    eventually(
        lambda: any(SIDECAR in each.cmdline() for each in children(command) if each.pid != controller.pid),
        "there is another controller",
    )
    server.kill()
    with GrpcClient(command.url) as client:
        key = client.control_headers
        eventually(lambda: not client.ask_one("plain", "hello").error, "it serves again", READY_S)
        assert client.control_headers == key
    assert beside(command, "tritonserver").pid != server.pid
    assert "tritonserver ended by SIGKILL. It is started again" in command.log.read_text()


def test_a_backbone_is_unloaded_among_requests(command: Command) -> None:
    """Its tasks go with it; loaded again, they are back."""
    with crowd_at(command) as crowd, GrpcClient(command.url) as control:
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


def test_sigterm_among_requests(command: Command) -> None:
    with crowd_at(command) as crowd, ThreadPoolExecutor(2) as pool:
        ours = [pool.submit(predict_until_it_is_gone, command.url) for _ in range(2)]
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
    http, grpc, metrics = free_ports(3)
    ports = ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
    line = [sys.executable, "-m", "fmplex", "serve", str(repository), *ports]
    with (tmp_path / "log").open("w") as err:
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=err, text=True)
        with process:
            assert first_line(process) == "ready\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0
