"""`fmplex serve` as a stranger meets it: inference is open, control is not, and what ends the server is said."""

from __future__ import annotations

import base64
import contextlib
import json
import string
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from fmplex import Client, ServerProblem
from testing.clients import GrpcClient, text_tensor
from testing.repositories import Task, write_backbone, write_task
from testing.serve_command import ServeCommand, serve_command

KEY = string.punctuation + "aZ09"  # every sign that has a meaning in Triton's option, in HTTP or in a shell
HEADER = {"triton-grpc-protocol-fmplex-key": KEY}
CODE = "raise SystemExit('this ran in the server')"
CONFIG = json.dumps({"name": "evil", "backend": "python", "max_batch_size": 0})
REGION = {"key": "/any", "offset": 0, "byte_size": 8}
CLOSED_OVER_HTTP: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "repository/index", {}),
    ("POST", "repository/models/task/load", {}),
    ("POST", "repository/models/task/unload", {}),
    ("GET", "logging", None),
    ("POST", "logging", {"log_file": "/tmp/elsewhere"}),
    ("GET", "trace/setting", None),
    ("POST", "trace/setting", {}),
    ("POST", "models/task/trace/setting", {}),
    ("GET", "systemsharedmemory/status", None),
    ("POST", "systemsharedmemory/region/any/register", REGION),
    ("POST", "systemsharedmemory/unregister", {}),
    ("GET", "cudasharedmemory/status", None),
    ("POST", "cudasharedmemory/region/any/register", {"raw_handle": {"b64": ""}, "device_id": 0, "byte_size": 8}),
    ("POST", "cudasharedmemory/unregister", {}),
]
Call = Callable[[grpcclient.InferenceServerClient, dict[str, str]], Any]
CLOSED_OVER_GRPC: dict[str, Call] = {
    "index": lambda client, headers: client.get_model_repository_index(headers),
    "load": lambda client, headers: client.load_model("task", headers),
    "unload": lambda client, headers: client.unload_model("task", headers),
    "logging": lambda client, headers: client.get_log_settings(headers),
    "trace": lambda client, headers: client.get_trace_settings(headers=headers),
    "shared memory": lambda client, headers: client.register_system_shared_memory("any", "/any", 8, headers=headers),
    "regions": lambda client, headers: client.get_system_shared_memory_status(headers=headers),
    "cuda memory": lambda client, headers: client.register_cuda_shared_memory("any", b"", 0, 8, headers=headers),
    "cuda regions": lambda client, headers: client.get_cuda_shared_memory_status(headers=headers),
}


def error_of(call: Call, client: grpcclient.InferenceServerClient, headers: dict[str, str]) -> str:
    """What Triton says against it; "" for nothing."""
    try:
        call(client, headers)
    except InferenceServerException as error:
        return str(error)
    return ""


def post(
    command: ServeCommand, path: str, body: dict[str, Any] | None, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """Status and text of an answer over HTTP; a GET where there is no body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{command.http_url}/v2/{path}", data, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeCommand]:
    """With a key of every sign."""
    folder = tmp_path_factory.mktemp("closed")
    repository = folder / "repository"
    write_backbone(repository)
    write_task(repository, Task("task", 0))
    with serve_command(repository, folder, "--no-controller", variables={"FMPLEX_CONTROL_KEY": KEY}) as command:
        yield command


class TestWithoutTheKey:
    @pytest.mark.parametrize(("method", "path", "body"), CLOSED_OVER_HTTP, ids=lambda value: str(value)[:40])
    def test_control_is_closed_over_http(
        self, command: ServeCommand, method: str, path: str, body: dict[str, Any] | None
    ) -> None:
        assert (method == "GET") == (body is None)
        for headers in ({}, {"fmplex-key": KEY[:-1]}, {"fmplex-key": ""}):
            status, text = post(command, path, body, headers)
            assert (status, "restricted" in text) == (403, True), text
        assert "restricted" not in post(command, path, body, {"fmplex-key": KEY})[1]

    @pytest.mark.parametrize("name", CLOSED_OVER_GRPC)
    def test_control_is_closed_over_grpc(self, command: ServeCommand, name: str) -> None:
        with grpcclient.InferenceServerClient(command.grpc_url) as client:
            for headers in ({}, {**HEADER, "triton-grpc-protocol-fmplex-key": KEY[:-1]}):
                assert "protocol is restricted" in error_of(CLOSED_OVER_GRPC[name], client, headers)
            assert "restricted" not in error_of(CLOSED_OVER_GRPC[name], client, HEADER)  # it may be wrong otherwise
            client.load_model("task", HEADER)

    def test_a_load_that_brings_its_own_code_is_refused(self, command: ServeCommand) -> None:
        encoded = base64.b64encode(CODE.encode()).decode()
        body = {"parameters": {"config": CONFIG, "file:1/model.py": encoded}}
        assert post(command, "repository/models/evil/load", body)[0] == 403
        with (
            grpcclient.InferenceServerClient(command.grpc_url) as client,
            pytest.raises(InferenceServerException, match="restricted"),
        ):
            client.load_model("evil", config=CONFIG, files={"file:1/model.py": CODE.encode()})
        assert "this ran in the server" not in command.log.read_text()

    def test_inference_metadata_and_health_are_open(self, command: ServeCommand) -> None:
        for path in ("health/ready", "models/task/ready", "models/task", "models/task/config", "models/task/stats"):
            assert post(command, path, None)[0] == 200
        with GrpcClient(command.grpc_url) as client:
            assert client.ask_one("task", "hello").good()["SCORES"].shape == (1, 3)

    @pytest.mark.parametrize("scheme", ["", "http://"])
    def test_our_client_says_what_helps(self, command: ServeCommand, scheme: str) -> None:
        url = f"{scheme}{command.http_url if scheme else command.grpc_url}"
        with Client(url) as client:
            with pytest.raises(ServerProblem, match=r"wants its control key.*FMPLEX_CONTROL_KEY"):
                client.load("task")
            assert client.predict("task", "hello")
        with Client(url, control_key=KEY) as client:
            client.load("task")
            assert client.tasks()["task"].state == "serving"


class TestSecrets:
    def test_the_key_is_neither_in_the_process_list_nor_with_the_models(self, command: ServeCommand) -> None:
        server = command.tritonserver
        assert server
        processes = [server, *server.children(recursive=True)]
        assert len(processes) >= 2
        for process in processes:
            assert KEY not in " ".join(process.cmdline())
            assert KEY not in process.environ().values()

    def test_the_backbone_s_shared_memory_has_no_name(self, command: ServeCommand) -> None:
        server = command.tritonserver
        assert server
        (stub,) = [child for child in server.children(recursive=True) if "stub" in child.name()]
        region = stub.cmdline()[2]
        assert not Path("/dev/shm", region).exists()
        path = "systemsharedmemory/region/any/register"
        status, text = post(command, path, {**REGION, "key": f"/{region}"}, {"fmplex-key": KEY})
        assert (status, "Unable to open shared memory region" in text) == (500, True)
        with GrpcClient(command.grpc_url) as client:  # it grows without its name
            for size in (4 << 20, 8 << 20):
                client.ask_one("task", "a " * (size // 2)).good()


def test_a_request_that_ends_triton_is_named_and_the_command_ends(command: ServeCommand) -> None:
    """Nothing that a server of 2.51 can be told prevents it; the last test here, for it ends the server."""
    with grpcclient.InferenceServerClient(command.grpc_url) as client, contextlib.suppress(InferenceServerException):
        asked = [grpcclient.InferRequestedOutput("LABEL", class_count=2)]
        client.infer("task", [text_tensor(grpcclient, ("hello",))], outputs=asked, client_timeout=30)
    assert command.process.wait(timeout=30) == 1
    said = [line for line in command.log.read_text().splitlines() if line.startswith("fmplex: ")]
    assert said[-1].startswith("fmplex: tritonserver ended by SIGFPE (")
    assert "`classification`" in said[-1]
