"""A CUDA error leaves the process's context unusable: the backbone answers every request and ends."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from asking import ask_grpc
from exits import exit_status
from gpu_only import needs_cuda
from sentences import sentence
from stub_environment import make_environment, patch_module

from testing.adapters import lora
from testing.clients import Question
from testing.repositories import Task, write_backbone, write_task
from testing.servers import Serving, eventually, serving

pytestmark = needs_cuda

TEXT = sentence(50, 1)
CLIENTS = 64
TRIGGER = "trigger"
# A token id beyond the vocabulary: an assertion in the kernel that looks up its embedding.
PATCH = """
    real = module.TextEncoderRuntime.prepare

    def prepare(self, request):
        real(self, request)
        if os.path.exists({trigger!r}):
            request.prepared.rows[0].ids[0] = 10_000_000

    module.TextEncoderRuntime.prepare = prepare
"""


@pytest.fixture
def poisonable(tmp_path: Path) -> Iterator[Serving]:
    """A server whose backbone meets a CUDA error once a file TRIGGER appears beside its repository."""
    repository = tmp_path / "repository"
    write_backbone(repository, kind="KIND_GPU")
    write_task(repository, Task("plain", 0))
    write_task(repository, Task("adapted", 1, adapter=lora()))
    variables = make_environment(tmp_path / "environment")
    patch = PATCH.format(trigger=str(tmp_path / TRIGGER))
    patch_module(tmp_path / "environment", "fmplex_backend.families.text_encoder.runtime", patch)
    with serving(repository, tmp_path, variables=variables, extra=("--exit-timeout-secs=3",)) as server:
        assert not server.refused
        yield server


def test_every_request_is_answered_and_the_process_ends(poisonable: Serving, tmp_path: Path) -> None:
    questions = [Question(("plain", "adapted")[n % 2], (TEXT, TEXT)) for n in range(CLIENTS)]
    good = ask_grpc(poisonable.grpc_url, questions, CLIENTS)
    assert [answer.message for answer in good if answer.error] == []
    process = poisonable.stub()
    (tmp_path / TRIGGER).touch()
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(ask_grpc, poisonable.grpc_url, questions, CLIENTS).result(timeout=90)
    assert [answer for answer in answers if not answer.error] == []
    assert [answer.message for answer in answers if answer.status == "DEADLINE_EXCEEDED"] == []
    said = [answer.message for answer in answers if "the engine thread of backbone 'minilm' died" in answer.message]
    assert said, [answer.message for answer in answers][:3]
    assert "CUDA error" in said[0]
    eventually(lambda: exit_status(process) is not None, "the backbone ends")
    assert exit_status(process) == 70
