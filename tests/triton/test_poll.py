"""Poll mode: whatever stands in the repository is served, under load, without a call."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import Hammer
from reference import Reference, difference
from sentences import sentence

from testing.adapters import lora
from testing.clients import Answer, Question
from testing.models import minilm
from testing.repositories import Task, write_backbone, write_task, write_version
from testing.servers import Serving, eventually, serving

TEXTS = [sentence(n, n) for n in range(1, 20, 3)]


@pytest.fixture(scope="module")
def polling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server that polls."""
    folder = tmp_path_factory.mktemp("poll")
    repository = folder / "repository"
    write_backbone(repository, threads="1")
    write_task(repository, Task("steady", 0, adapter=lora()))
    with serving(repository, folder, control="poll") as server:
        assert not server.refused
        yield server


def test_a_directory_comes_changes_and_goes(polling: Serving, tmp_path: Path) -> None:
    steady = Reference(minilm(), polling.repository / "steady" / "1")
    for text in TEXTS:
        steady(text)

    def check(question: Question, answer: Answer) -> str:
        return difference(answer.outputs, 0, steady(str(question.texts[0])))

    before = polling.stub().pid
    with Hammer(polling.grpc_url, [Question("steady", (text,)) for text in TEXTS], check) as hammer:
        comes_changes_and_goes(polling, tmp_path)
        hammer.wait_for(20)
    assert polling.stub().pid == before


def comes_changes_and_goes(polling: Serving, tmp_path: Path) -> None:
    task = Task("dropped", 1, adapter=lora(16), seed=1)
    reference = Reference(minilm(), write_task(polling.repository, task) / "1")
    eventually(lambda: polling.has("dropped"), "the dropped directory is served")
    with polling.client() as client:
        assert not difference(client.ask_one("dropped", TEXTS[2]).good(), 0, reference(TEXTS[2]))
        built = write_version(tmp_path / "2", Task("dropped", 1, adapter=lora(4), seed=2))
        newer = Reference(minilm(), built)(TEXTS[2])
        shutil.copytree(built, polling.repository / "dropped" / "2")
        eventually(lambda: not difference(client.ask_one("dropped", TEXTS[2]).good(), 0, newer), "the new version")
        shutil.rmtree(polling.repository / "dropped")
        eventually(lambda: not polling.has("dropped"), "the removed directory is not served")
        assert client.ask_one("dropped", TEXTS[2]).error


def test_two_tasks_with_one_tag_are_never_answered_for_each_other(polling: Serving) -> None:
    """This server loads whatever is there and unloads nothing when asked: while it has both, none is answered."""
    first, second = Task("first", 2, adapter=lora(), seed=3), Task("second", 2, adapter=lora(), seed=4)
    reference = Reference(minilm(), write_task(polling.repository, first) / "1")
    eventually(lambda: polling.has("first"), "the first is served")
    with polling.client() as client:
        assert not difference(client.ask_one("first", TEXTS[2]).good(), 0, reference(TEXTS[2]))
        write_task(polling.repository, second)
        eventually(lambda: polling.has("second"), "the second is loaded")
        for name in ("second", "first"):
            answer = client.ask_one(name, TEXTS[2])
            assert answer.status == "UNAVAILABLE"
            assert "VFM_2 is the tag of 'first', and requests of 'second' may come with it too" in answer.message
        eventually(lambda: "task second cannot be unloaded" in polling.log.read_text(), "it is said")
        shutil.rmtree(polling.repository / "second")
        eventually(lambda: not client.ask_one("first", TEXTS[2]).error, "the first goes on", 20)
        assert not difference(client.ask_one("first", TEXTS[2]).good(), 0, reference(TEXTS[2]))
    shutil.rmtree(polling.repository / "first")
