"""Tasks that come, change and go on a running server, and clients that check every answer meanwhile."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from asking import Asker, Check, Hammer
from reference import Reference, difference

from testing.clients import Answer, GrpcClient, Outputs, Question
from testing.models import minilm
from testing.repositories import Task
from testing.servers import Serving, eventually

SLOW_S = 10.0
Expected = Callable[[Any], Outputs]  # one item -> what a client must get


def checks(references: Mapping[str, Expected], items: Iterable[Any]) -> Check:
    """Compares an answer's first row with the reference of its task, which is worked out now."""
    for reference in references.values():
        for item in items:
            reference(item)

    def check(question: Question, answer: Answer) -> str:
        return difference(answer.outputs, 0, references[question.task](question.texts[0]))

    return check


def reference_of(server: Serving, task: str) -> Reference:
    """Of a task's first version."""
    return Reference(minilm(), server.repository / task / "1")


class Others:
    """Tasks on a running server that nothing is done to, with what their clients must get.

    Args:
        expected: by the name of each.
        items: what their clients ask.
    """

    def __init__(
        self,
        server: Serving,
        expected: Mapping[str, Expected],
        items: Sequence[Any],
        backbone: str = "minilm",
        connect: Callable[[str], Asker] = GrpcClient,
    ) -> None:
        self.server, self.backbone, self.connect = server, backbone, connect
        self.check = checks(expected, items)
        self.questions = [Question(name, (item,)) for name in expected for item in items]

    @staticmethod
    def of(server: Serving, tasks: Iterable[Task], texts: Sequence[str], backbone: str = "minilm") -> Others:
        """With the answers of plain Transformers."""
        return Others(server, {each.name: reference_of(server, each.name) for each in tasks}, texts, backbone)

    @contextlib.contextmanager
    def go_on(self, clients: int = 2, answers: int = 4) -> Iterator[Hammer]:
        """For as long as the block lasts every answer is right, none takes long, and no process is another afterwards.

        Args:
            answers: so many are waited for before the block, and again at its end.
        """
        before = self._processes()
        with Hammer(self.server.grpc_url, self.questions, self.check, clients, self.connect) as hammer:
            hammer.wait_for(answers)
            yield hammer
            hammer.wait_for(answers)
        assert self._processes() == before
        assert hammer.slowest < SLOW_S

    def _processes(self) -> tuple[int, int]:
        return self.server.process.pid, self.server.stub(self.backbone).pid


def remove(server: Serving, task: str) -> None:
    """As a user does: unload, then delete."""
    server.unload(task)
    shutil.rmtree(server.repository / task)


@contextlib.contextmanager
def loaded(server: Serving, directory: Path) -> Iterator[Path]:
    """A task that has just been put into the repository, for as long as the block lasts; its directory."""
    try:
        server.load(directory.name)
        yield directory
    finally:
        remove(server, directory.name)


class Change:
    """A task whose clients accept the answers of the versions allowed now, and of no mixture of them.

    Args:
        directory: the task's, in the server's repository.
        reference: of the version that is served.
        items: what its clients ask.
    """

    def __init__(
        self,
        server: Serving,
        directory: Path,
        reference: Expected,
        items: Sequence[Any],
        connect: Callable[[str], Asker] = GrpcClient,
    ) -> None:
        self.server, self.directory, self.items, self.connect = server, directory, items, connect
        for item in items:
            reference(item)
        self.allowed = [reference]

    def check(self, question: Question, answer: Answer) -> str:
        """One version's answer, whole."""
        found = [difference(answer.outputs, 0, reference(question.texts[0])) for reference in self.allowed]
        return "" if "" in found else f"neither version's answer: {found}"

    @contextlib.contextmanager
    def asked(self, clients: int = 8) -> Iterator[Hammer]:
        """Clients of the task for as long as the block lasts."""
        questions = [Question(self.directory.name, (item,)) for item in self.items]
        with Hammer(self.server.grpc_url, questions, self.check, clients, self.connect) as hammer:
            hammer.wait_for(10)
            yield hammer

    def arrives(self, hammer: Hammer, reference: Expected, put: Callable[[], object]) -> None:
        """`put` brings a version: both answers are right until the new one has come, then only that."""
        for item in self.items:
            reference(item)
        self.allowed.append(reference)
        put()
        self.server.load(self.directory.name)
        question = Question(self.directory.name, (self.items[5],))
        expected = reference(self.items[5])
        with self.connect(self.server.grpc_url) as client:
            eventually(lambda: not difference(client.ask(question).good(), 0, expected), "new answers")
        hammer.wait_for(30)  # whatever was on its way has arrived
        self.allowed = [reference]
        hammer.wait_for(30)
