"""Requests of every odd kind get an answer or a clear error, never a hang.

The server runs on the layout of an NGC container: `fmplex install-backend` into a backend directory beside Triton's own
Python backend.
"""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from asking import ask_grpc
from measuring import figure, undisturbed
from reference import Reference, difference
from tritonclient.utils import InferenceServerException
from waiting import busy

from fmplex_controller.server.installation import find_tritonserver, wheel_libraries
from testing.adapters import lora
from testing.clients import Answer, GrpcClient, Question
from testing.models import minilm
from testing.repositories import Task, write_backbone, write_task
from testing.servers import Serving, serving

TASKS = (
    Task("cls", 0, adapter=lora()),
    Task("tok", 1, "token-classification", adapter=lora(4)),
    Task("emb", 2, "embedding"),
    Task("bounded", 3, parameters={"max_queue": "3"}),
)
LONG = {
    "words": "word and another. " * 60_000,
    "no-spaces": "a" * 100_000,  # of a text of so few tokens, a megabyte would not be read whole
    "cjk": "東京" * 160_000,
    "newlines": "line\n" * 200_000,
    "spaces": " " * 100_000,
}


def install_backends(folder: Path) -> Path:
    """What the Dockerfile makes of /opt/tritonserver/backends: Triton's own, and ours."""
    installation = find_tritonserver()
    shutil.copytree(installation.python_backend, folder / "python")
    shutil.copy2(installation.stub, folder / "python")
    line = [sys.executable, "-m", "fmplex", "install-backend", str(folder)]
    subprocess.run(line, check=True, timeout=60)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Triton with a backend directory that `fmplex serve` has not made."""
    folder = tmp_path_factory.mktemp("requests")
    repository = folder / "repository"
    write_backbone(repository, max_batch_tokens="16384")  # so that one large request keeps the backbone busy
    for task in TASKS:
        write_task(repository, task)
    backends = install_backends(folder / "backends")
    with serving(repository, folder, extra=(f"--backend-directory={backends}",)) as server:
        assert not server.refused
        assert str(backends) in " ".join(server.stub().cmdline())
        yield server


@pytest.fixture
def client(server: Serving) -> Iterator[GrpcClient]:
    """A gRPC client."""
    with server.client() as client:
        yield client


def reference(server: Serving, task: str) -> Reference:
    """What a task must answer."""
    return Reference(minilm(), server.repository / task / "1")


def send(
    client: GrpcClient, model: str, value: Any, dtype: str = "BYTES", outputs: tuple[str, ...] = (), **options: Any
) -> Any:
    """One request as it stands; raises what Triton says."""
    array = np.asarray(value)
    tensor = grpcclient.InferInput("TEXT", list(array.shape), dtype)
    tensor.set_data_from_numpy(array)
    wanted = [grpcclient.InferRequestedOutput(name) for name in outputs] or None
    return client.raw.infer(model, [tensor], outputs=wanted, client_timeout=30, **options)


def cells(*values: bytes) -> Any:
    """[n, 1]."""
    return np.array([[value] for value in values], dtype=np.object_).reshape(-1, 1)


# -- bodies


@pytest.mark.parametrize("task", ["cls", "tok", "emb"])
@pytest.mark.parametrize("text", ["", " ", "\n", "\x00", "​", "."])
def test_next_to_nothing_is_answered(server: Serving, client: GrpcClient, task: str, text: str) -> None:
    answer = client.ask_one(task, text)
    assert not difference(answer.good(), 0, reference(server, task)(text))


@pytest.mark.parametrize("task", ["cls", "tok"])
@pytest.mark.parametrize("kind", list(LONG))
def test_a_long_text_is_cut_as_the_tokenizer_does(server: Serving, client: GrpcClient, task: str, kind: str) -> None:
    answer = client.ask_one(task, "short", LONG[kind], "short")
    expected = reference(server, task)
    for row, text in enumerate(("short", LONG[kind], "short")):
        assert not difference(answer.good(), row, expected(text))
    assert answer.outputs["TRUNCATED"].ravel().tolist() == [False, kind not in ("no-spaces", "spaces"), False]


INVALID = {
    "not UTF-8": (cells(b"\xff\xfe abc"), "BYTES", {}, r"TEXT\[0\] is not valid UTF-8.*byte 0"),
    "one of three not UTF-8": (cells(b"a", b"b\x80", b"c"), "BYTES", {}, r"TEXT\[1\] is not valid UTF-8.*byte 1"),
    "a lone surrogate": (cells(b"\xed\xa0\x80"), "BYTES", {}, "not valid UTF-8"),
    "no items": (np.zeros((0, 1), dtype=np.object_), "BYTES", {}, "expected 1 string elements|holds no items"),
    "numbers": (np.zeros((1, 1), dtype=np.int64), "INT64", {}, "data-type"),
    "two columns": (np.array([[b"a", b"b"]], dtype=np.object_), "BYTES", {}, "unexpected shape"),
    "no batch": (np.array([b"a"], dtype=np.object_), "BYTES", {}, "unexpected shape"),
    "three dims": (np.array([[[b"a"]]], dtype=np.object_), "BYTES", {}, "unexpected shape"),
    "33 items": (cells(*[b"a"] * 33), "BYTES", {}, "batch-size must be <= 32"),
    "slo_ms no number": (cells(b"a"), "BYTES", {"slo_ms": "soon"}, "slo_ms is 'soon'"),
    "slo_ms empty": (cells(b"a"), "BYTES", {"slo_ms": ""}, "slo_ms is ''"),
    "slo_ms below 0": (cells(b"a"), "BYTES", {"slo_ms": -3}, "slo_ms is -3"),
    "slo_ms 0": (cells(b"a"), "BYTES", {"slo_ms": 0}, "slo_ms is 0"),
    "slo_ms nan": (cells(b"a"), "BYTES", {"slo_ms": "nan"}, "slo_ms is 'nan'"),
    "slo_ms infinite": (cells(b"a"), "BYTES", {"slo_ms": "inf"}, "slo_ms is 'inf'"),
}


@pytest.mark.parametrize("kind", list(INVALID))
def test_a_request_that_is_wrong_is_told_why(client: GrpcClient, kind: str) -> None:
    value, dtype, parameters, says = INVALID[kind]
    with pytest.raises(InferenceServerException, match=says) as caught:
        send(client, "cls", value, dtype, parameters=parameters)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


FINE: dict[str, dict[str, Any]] = {
    "slo_ms": {"parameters": {"slo_ms": 50}},
    "slo_ms as text": {"parameters": {"slo_ms": "12.5"}},
    "slo_ms that cannot be kept": {"parameters": {"slo_ms": "0.000001"}},
    "unknown parameters": {"parameters": {"colour": "red", "flag": True, "number": 7}},
    "request id": {"request_id": "r" * 3000},
    "priority": {"priority": 5},
    "timeout": {"timeout": 1},
    "sequence": {"sequence_id": 9, "sequence_start": True, "sequence_end": True},
    "one output": {"outputs": ("SCORES",)},
    "the receipt alone": {"outputs": ("usage",)},
    "an output twice": {"outputs": ("SCORES", "SCORES")},
}


@pytest.mark.parametrize("kind", list(FINE))
def test_odd_but_right_requests_are_answered(server: Serving, client: GrpcClient, kind: str) -> None:
    result = send(client, "cls", cells(b"hello there"), **FINE[kind])
    found = {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}
    assert not difference(found, 0, reference(server, "cls")("hello there"))


JSON = '{"inputs": [{"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": ["hi"]}]%s}'
BODIES = {
    "plain": (JSON % "", 200),
    "float slo_ms": (JSON % ', "parameters": {"slo_ms": 1.5}', 200),
    "null slo_ms": (JSON % ', "parameters": {"slo_ms": null}', 400),
    "bad slo_ms": (JSON % ', "parameters": {"slo_ms": "x"}', 400),
    "nothing": ("", 200),  # to Triton one empty text in its raw binary form
    "no JSON": ("nope", 500),
    "no inputs": ('{"inputs": []}', 400),
    "an empty batch": (JSON.replace("[1, 1]", "[0, 1]").replace('"hi"', "") % "", 400),
    "a number for a text": (JSON.replace('"hi"', "1") % "", 500),
    "too few texts": (JSON.replace("[1, 1]", "[2, 1]") % "", 400),
    "another input": (JSON.replace("TEXT", "TEXTS") % "", 400),
    "lone surrogate": (JSON.replace("hi", "\\ud800") % "", 500),
    "an id that is not UTF-8": (JSON % ', "id": "\xff"', 400),
}


@pytest.mark.parametrize("kind", list(BODIES))
def test_bodies_over_http(server: Serving, kind: str) -> None:
    body, status = BODIES[kind]
    response, answer = post(server, "/v2/models/cls/infer", body)
    assert response == status, answer
    assert (b'"error"' in answer) == (status != 200)


def test_generate(server: Serving) -> None:
    """Triton's simple HTTP form works for tasks too."""
    status, answer = post(server, "/v2/models/cls/generate", '{"TEXT": "hi"}')
    assert status == 200
    document = json.loads(answer)
    expected = reference(server, "cls")("hi")
    assert document["LABEL"] == expected["LABEL"][0]
    assert np.abs(np.array(document["SCORES"]) - expected["SCORES"]).max() < 1e-4


def post(server: Serving, path: str, body: str) -> tuple[int, bytes]:
    """Status and body."""
    host, port = server.http_url.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    try:
        connection.request("POST", path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


# -- the backbone itself


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ((), "tasks' tags: call a task instead: bounded, cls, emb"),
        (("EMBEDDING",), "no task's tag: call a task instead: bounded, cls, emb"),
        (("EMBEDDING", "VFM_2", "VFM_0"), "2 tasks' tags: call a task instead: bounded, cls, emb"),
        (("EMBEDDING", "VFM_77"), "VFM_77 is no task's tag .*call a task instead: bounded, cls, emb"),
        (("VFM_255",), "VFM_255 is no task's tag"),
        (("EMBEDDING", "VFM_0"), "does not make EMBEDDING, but SCORES, LABEL"),
        (("LABEL", "VFM_2"), "does not make LABEL, but EMBEDDING"),
    ],
)
def test_the_bare_backbone_is_not_to_be_had(client: GrpcClient, outputs: tuple[str, ...], says: str) -> None:
    with pytest.raises(InferenceServerException, match=says) as caught:
        send(client, "minilm", cells(b"hello"), outputs=outputs)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_a_task_s_own_tag_on_the_backbone_is_the_task(server: Serving, client: GrpcClient) -> None:
    result = send(client, "minilm", cells(b"hello"), outputs=("SCORES", "LABEL", "VFM_0"))
    found = {name: result.as_numpy(name) for name in ("SCORES", "LABEL")}
    assert not difference(found, 0, reference(server, "cls")("hello"))


# -- full queues


def test_beyond_max_queue_is_unavailable_at_once(server: Serving) -> None:
    """While the backbone is busy with one large request; another task is served as ever."""
    questions = [Question("bounded", ("hello",))] * 12 + [Question("cls", ("hello",))] * 12

    def measure() -> tuple[list[Answer], list[Answer]]:
        with busy(server, "emb"):
            answers = ask_grpc(server.grpc_url, questions, len(questions))
        refused = [answer for answer in answers[:12] if answer.error]
        figure(len(refused) == 9, "the large request was over before these came")
        slowest_refusal = max(answer.seconds for answer in refused)
        figure(slowest_refusal < 0.7 * min(answer.seconds for answer in answers[:12] if not answer.error), "it waited")
        return answers, refused

    answers, refused = undisturbed(measure)
    assert {answer.status for answer in refused} == {"UNAVAILABLE"}
    assert all("'bounded' has 3 requests waiting, its max_queue is 3" in answer.message for answer in refused)
    expected = {task: reference(server, task)("hello") for task in ("bounded", "cls")}
    for question, answer in zip(questions, answers, strict=True):
        if answer not in refused:
            assert not difference(answer.good(), 0, expected[question.task])
    assert not [answer.error for answer in answers[12:] if answer.error]


def test_a_client_that_goes_away_harms_nobody(server: Serving, client: GrpcClient) -> None:
    with busy(server, "emb"):
        gone = [client.ask(Question("cls", ("hello",)), timeout=0.02) for _ in range(5)]
        assert {answer.status for answer in gone} == {"DEADLINE_EXCEEDED"}
        assert not difference(client.ask_one("cls", "hello").good(), 0, reference(server, "cls")("hello"))


# -- the container


@pytest.mark.slow
def test_a_server_of_its_own_as_in_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/opt/tritonserver's layout, found on PATH; FMplex composes the backend directory around its links."""
    wheel = find_tritonserver()
    install_backends(tmp_path / "opt" / "backends")
    (tmp_path / "opt" / "bin").mkdir()
    binary = shutil.copy2(wheel.binary, tmp_path / "opt" / "bin")
    monkeypatch.setenv("PATH", str(Path(binary).parent), prepend=":")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(wheel_libraries()))
    assert find_tritonserver().binary == Path(binary)
    repository = tmp_path / "repository"
    write_backbone(repository)
    version = write_task(repository, Task("plain", 0)) / "1"
    with serving(repository, tmp_path) as server, server.client() as client:
        assert not server.refused
        assert not difference(client.ask_one("plain", "hello").good(), 0, Reference(minilm(), version)("hello"))
