"""Canaries and shadows on the real server: who answers what, what is told of it, and that clients notice nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from asking import Hammer
from sentences import mixture

from fmplex import Client
from fmplex.client.versions import rows_of
from fmplex_backend.repository.rollout import Rollout
from fmplex_backend.serving.traffic_split import point
from fmplex_backend.status import CandidateStatus
from testing.adapters import lora
from testing.clients import Question, text_tensor
from testing.repositories import Task, write_backbone, write_task, write_version
from testing.servers import Serving, eventually, serving

TEXT = mixture(1)[0]
IDS = [f"request-{number}" for number in range(24)]
TRIED = Task("tried", 0, seed=1)
SAME, OTHER, BROKEN = 2, 3, 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A task whose second version is the first again, whose third has an adapter, and whose fourth is cut short."""
    folder = tmp_path_factory.mktemp("rollout")
    repository = folder / "repository"
    repository.mkdir()
    write_backbone(repository)
    tried = write_task(repository, TRIED)
    write_version(tried / str(SAME), TRIED)
    write_version(tried / str(OTHER), Task("tried", 0, seed=2, adapter=lora(8, "query")))
    head = write_version(tried / str(BROKEN), TRIED) / "decoder.safetensors"
    head.write_bytes(head.read_bytes()[:-8])
    write_task(repository, Task("beside", 1, seed=3))
    Rollout(repository).rollback("tried", 1)
    with serving(repository, folder) as server:
        assert not server.refused
        yield server


@pytest.fixture
def models(server: Serving) -> Iterator[Rollout]:
    models = Rollout(server.repository)
    yield models
    models.rollback("tried", 1)
    eventually(lambda: not candidates(server), "nothing is tried any more")


def candidates(server: Serving) -> tuple[CandidateStatus, ...]:
    with Client(server.grpc_url) as client:
        (task,) = client.status("minilm", "tried").tasks
        return task.candidates


def scores(server: Serving, request_id: str = "", protocol: str = "grpc") -> list[float]:
    url, module = (server.http_url, httpclient) if protocol == "http" else (server.grpc_url, grpcclient)
    with module.InferenceServerClient(url) as client:
        result = client.infer("tried", [text_tensor(module, [TEXT])], request_id=request_id)
        found = result.as_numpy("SCORES")
    assert isinstance(found, np.ndarray)
    return [round(float(each), 3) for each in found.ravel()]


def test_an_id_gets_the_same_version_over_both_protocols(server: Serving, models: Rollout) -> None:
    first = scores(server)
    models.canary("tried", 0.5, OTHER)
    eventually(lambda: bool(candidates(server)), "the canary is served")
    answers = [[scores(server, request_id, protocol) for request_id in IDS] for protocol in ("grpc", "http")]
    assert answers[0] == answers[1]
    chosen = [point(f"tried/{OTHER}", request_id) < 0.5 for request_id in IDS]
    assert [each != first for each in answers[0]] == chosen
    assert 8 <= sum(chosen) <= 16
    (canary,) = candidates(server)
    assert (canary.version, canary.requests, canary.served_requests) == (OTHER, 2 * sum(chosen), 48 - 2 * sum(chosen))
    assert canary.service_s > 0
    models.promote("tried")
    eventually(lambda: scores(server, IDS[chosen.index(False)]) != first, "the canary's version serves")


def test_a_shadow_answers_nobody_and_is_compared(server: Serving, models: Rollout) -> None:
    first = scores(server)
    models.shadow("tried", SAME)
    eventually(lambda: bool(candidates(server)), "the shadow is served")
    assert [scores(server, request_id) for request_id in IDS] == [first] * len(IDS)
    eventually(lambda: candidates(server)[0].requests == len(IDS), "all are compared")
    with Client(server.grpc_url) as client:
        serves, shadow = rows_of(client.status("minilm", "tried").tasks)
    assert (shadow.agreement, shadow.requests, shadow.share, shadow.failures) == (1.0, len(IDS), 1.0, 0)
    assert (serves.requests, serves.failures) == (len(IDS), 0)
    compared = ("fmplex_shadow_copies_total", "tried/shadow", "compared")
    eventually(lambda: server.metrics().get(compared) == len(IDS), "it is on /metrics")
    with Client(server.grpc_url) as client:
        status = client.status("minilm")
    accounts = [*status.tasks, *candidates(server), *status.closed]
    assert sum(each.service_s for each in accounts) == pytest.approx(status.busy_s)


@pytest.mark.parametrize("role", ["canary", "shadow"])
def test_a_version_that_is_cut_short_is_refused_and_the_old_one_answers_all(
    server: Serving, models: Rollout, role: str
) -> None:
    first = scores(server)
    (models.canary("tried", 0.9, BROKEN) if role == "canary" else models.shadow("tried", BROKEN))
    eventually(lambda: bool(candidates(server)), "it is told of")
    (told,) = candidates(server)
    assert "decoder.safetensors" in told.error
    assert told.account is None
    assert [scores(server, request_id) for request_id in IDS[:8]] == [first] * 8


def test_changes_under_load_cost_no_request(server: Serving, models: Rollout) -> None:
    questions = [Question("tried", (TEXT,)), Question("beside", (TEXT,))]
    with Hammer(server.grpc_url, questions, lambda question, answer: answer.message) as hammer:

        def go_on() -> None:
            reached = hammer.total + 100
            eventually(lambda: hammer.total > reached, "requests are answered")

        for version, shadow in ((SAME, OTHER), (OTHER, 1)):
            models.shadow("tried", shadow)
            for share in (0.3, 0.7):
                models.canary("tried", share, version)
                go_on()
            models.promote("tried")
            go_on()
