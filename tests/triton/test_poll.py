"""Poll mode: whatever stands in the repository is served, under load, without a call."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import Answer, Hammer, Question
from reference import Reference, difference, minilm
from sentences import sentence
from serving import Serving, eventually, serving
from tasks import Task, lora, write_backbone, write_task, write_version

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
