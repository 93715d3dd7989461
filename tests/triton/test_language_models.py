"""The interface of language models on the real server, over every protocol: a tiny Llama with random weights.

What every family does is in the contract test (tests/support/language_model_case.py).
"""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from transformers import AutoModelForCausalLM

from fmplex import AsyncClient, Backbone, Client, Generator, Pretrained, ServerProblem, Task, TaskProblem
from fmplex_backend.repository.configs import Terms
from fmplex_backend.repository.writer import ModelRepository
from testing.adapters import lora, save_adapter
from testing.language_models import save_tiny
from testing.repositories import write_backbone
from testing.servers import Serving, eventually, serving

BACKBONE = "tiny"
TEXTS = [
    f"{word} {number} " * (1 + number % 9) for number, word in enumerate(["fox", "日本語", "dog", "🙂", "lazy"] * 3)
]
SYSTEM = "be brief"
ROOM = 8  # adapters in memory
ADAPTER_BYTES = 3 * 2 * 4 * (64 + 64) * 4  # layers, modules, rank, widths, float32


@dataclass(frozen=True)
class House:
    """The server, and what its tasks are made of."""

    serving: Serving

    def task(self, name: str, **options: Any) -> Task:
        return Task(name, Backbone(BACKBONE, repository=self.serving.repository), **options)

    def url(self, path: str) -> str:
        return f"http://{self.serving.http_url}/v2/models/{path}"

    def post(self, path: str, document: Any) -> str:
        request = urllib.request.Request(self.url(path), json.dumps(document).encode())
        with urllib.request.urlopen(request, timeout=60) as response:
            return str(response.read().decode())


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Tasks `plain`, `small` and `brief` (a system prompt)."""
    folder = tmp_path_factory.mktemp("language-models")
    model, repository = save_tiny(folder / "model"), folder / "repository"
    write_backbone(
        repository,
        BACKBONE,
        model=str(model),
        max_batch_size=0,
        family="causal-lm",
        threads="1",
        dtype="float32",
        kv_cache_bytes=str(1 << 21),
        adapter_memory=str(ROOM * ADAPTER_BYTES),
    )
    backbone = Backbone(BACKBONE, repository=repository)
    for name in ("plain", "small"):
        Task(name, backbone, decoder=Generator(chat=False)).save()
    Task("brief", backbone, decoder=Generator(system=SYSTEM, max_tokens=5, temperature=0)).save()
    with serving(repository, folder) as server:
        assert not server.refused, server.log.read_text()[-3000:]
        yield House(server)


@pytest.fixture
def client(house: House) -> Iterator[Client]:
    with Client(house.serving.grpc_url, timeout=60) as client:
        yield client


# -- the interface of Triton's vLLM backend


def request_of(text: str, stream: bool | None = None, sampling: dict[str, Any] | None = None) -> list[Any]:
    """The tensors that its clients send: no batch dimension."""
    tensors: dict[str, Any] = {"text_input": (np.array([text.encode()], dtype=np.object_), "BYTES")}
    if stream is not None:
        tensors["stream"] = (np.array([stream]), "BOOL")
    if sampling is not None:
        tensors["sampling_parameters"] = (np.array([json.dumps(sampling).encode()], dtype=np.object_), "BYTES")
        tensors["exclude_input_in_output"] = (np.array([True]), "BOOL")
    found = []
    for name, (array, kind) in tensors.items():
        tensor = grpcclient.InferInput(name, [1], kind)
        tensor.set_data_from_numpy(array)
        found.append(tensor)
    return found


def streamed(house: House, task: str, tensors: list[Any]) -> list[tuple[Any, Any]]:
    """Every response over gRPC's stream: (result, error)."""
    arrived: Queue[tuple[Any, Any]] = Queue()
    with grpcclient.InferenceServerClient(house.serving.grpc_url) as own:
        own.start_stream(lambda result, error: arrived.put((result, error)))
        own.async_stream_infer(task, tensors)
        own.stop_stream()  # waits for the last response
    return [arrived.get_nowait() for _ in range(arrived.qsize())]


def text_of(result: Any) -> str:
    return str(result.as_numpy("text_output")[0].decode())


def test_a_client_of_the_vllm_backend(house: House) -> None:
    sampling = {"temperature": "0", "max_tokens": "12", "ignore_eos": "true"}  # as text, as that client sends them
    parts = streamed(house, "plain", request_of("fox", True, sampling))
    ((whole, error),) = streamed(house, "plain", request_of("fox", False, sampling))
    assert error is None
    assert all(error is None for _, error in parts)
    assert len(parts) > 4
    assert "".join(text_of(part) for part, _ in parts) == text_of(whole)
    assert [part.as_numpy("finish_reason")[0] for part, _ in parts[:-1]] == [b""] * (len(parts) - 1)
    assert whole.as_numpy("finish_reason")[0] == parts[-1][0].as_numpy("finish_reason")[0] == b"length"
    assert sum(int(part.as_numpy("num_output_tokens")[0]) for part, _ in parts) == 12
    assert whole.as_numpy("usage").shape == (3,)
    finals = [part.get_response().parameters["triton_final_response"].bool_param for part, _ in parts]
    assert finals == [False] * (len(parts) - 1) + [True]


def test_http_generate_and_generate_stream(house: House) -> None:
    wanted = {"text_input": "fox", "parameters": {"temperature": 0, "max_tokens": 12, "ignore_eos": True}}
    whole = json.loads(house.post("plain/generate", wanted))
    events = house.post("plain/generate_stream", {**wanted, "stream": True}).split("\n\n")
    parts = [json.loads(event.removeprefix("data: ")) for event in events if event.strip()]
    assert "".join(part["text_output"] for part in parts) == whole["text_output"]
    assert len(parts) > 4
    echoed = json.loads(house.post("plain/generate", {**wanted, "exclude_input_in_output": False}))
    assert echoed["text_output"] == "fox" + whole["text_output"]


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"text_input": "a", "sampling_parameters": "{"}, "sampling_parameters is not JSON"),
        ({"text_input": "a", "sampling_parameters": '{"best_of": 2}'}, "there is no field 'best_of'"),
        ({"text_input": "a", "sampling_parameters": '{"max_tokens": 100000}'}, "sampling_parameters.max_tokens"),
        ({"text_input": "a", "sampling_parameters": '{"stop_token_ids": [70000]}'}, "there is no token 70000"),
        ({"text_input": "日" * 3000}, "prompt and answer together"),
        ({"text_input": ""}, "text_input holds no tokens"),
    ],
)
def test_what_cannot_be_served_says_which_field(house: House, document: dict[str, Any], says: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        house.post("plain/generate", document)
    assert caught.value.code == 400
    assert says in json.loads(caught.value.read())["error"]
    answer = json.loads(
        house.post("plain/generate", {"text_input": "fox", "parameters": {"max_tokens": 2, "ignore_eos": True}})
    )
    assert answer["num_output_tokens"] == 2


# -- FMplex's own clients


def test_clients_and_the_task_api_say_the_same(house: House, client: Client) -> None:
    task = house.task("brief", decoder=Generator(system=SYSTEM, max_tokens=5, temperature=0))
    here = task.predict(TEXTS[:4])
    assert client.predict("brief", TEXTS[:4]) == here
    assert all(answer.output_tokens <= 5 for answer in here)

    async def asked() -> Any:
        async with AsyncClient(house.serving.grpc_url, timeout=60) as own:
            parts = [part.text async for part in own.stream("brief", TEXTS[0])]
            return await own.predict("brief", TEXTS[:4]), "".join(parts)

    assert asyncio.run(asked()) == (here, here[0].text)
    more = client.predict("brief", TEXTS[0], parameters={"max_tokens": 9, "ignore_eos": True, "logprobs": 1})[0]
    assert (more.output_tokens, len(more.logprobs)) == (9, 9)
    with Client(f"http://{house.serving.http_url}") as http, pytest.raises(TaskProblem, match="gRPC"):
        http.predict("brief", "a")


def test_status_and_metrics(house: House, client: Client) -> None:
    status = client.status(BACKBONE)
    assert {task.name for task in status.tasks} >= {"plain", "brief", "small"}
    assert status.dtype == "float32"
    long = "be brief and say it in three words " * 3
    for text in (long, long, long + "fox"):
        client.predict("plain", text, parameters={"max_tokens": 3, "ignore_eos": True})
    metric = house.serving.metric
    eventually(lambda: metric("prefix_tokens_total", "plain") >= 32, "what was found is counted")
    for name, least in (("prompt_tokens_total", 100), ("generated_tokens_total", 9)):
        eventually(lambda name=name, least=least: metric(name, "plain") >= least, f"{name} is counted")
    first = "time_to_first_token_seconds"
    eventually(
        lambda: metric(f"{first}_bucket", "plain", "+Inf") == metric(f"{first}_count", "plain") >= 3, "it is timed"
    )

    def is_free() -> bool:
        memory = house.serving.metrics()
        free, blocks = (memory[f"fmplex_backbone_kv_blocks{end}", "", ""] for end in ("_free", ""))
        return free == blocks > 0

    eventually(is_free, "all blocks are free")


# -- limits


def test_an_answer_ends_at_its_tasks_time_limit(house: House, client: Client) -> None:
    """With what it has; the limit holds for what runs already, and goes again."""
    repository = ModelRepository(house.serving.repository)
    wishes = {"max_tokens": 480, "ignore_eos": True, "temperature": 0}

    def limits() -> tuple[float | None, int | None]:
        (task,) = [each for each in client.status(BACKBONE).tasks if each.name == "small"]
        return task.max_seconds, task.max_running

    with ThreadPoolExecutor(24) as pool:
        others = [pool.submit(client.predict, "plain", f"fox {number}", parameters=wishes) for number in range(4)]
        repository.set("small", Terms(max_seconds=0.5, max_running=3))
        eventually(lambda: limits() == (0.5, 3), "limits are read")
        own = [pool.submit(client.predict, "small", f"dog {number}", parameters=wishes) for number in range(6)]
        ended = [each.exception() or each.result()[0] for each in own]
        assert all(each.result()[0].output_tokens == 480 for each in others)
    repository.set("small", Terms(cleared=frozenset({"max_seconds", "max_running"})))
    eventually(lambda: limits() == (None, None), "they are gone")
    for each in ended:
        if isinstance(each, ServerProblem):  # it did not begin in time
            assert "0.5 s (its max_seconds)" in str(each)
        else:
            assert (each.finish_reason, each.output_tokens < 480) == ("length", True)
    assert client.predict("small", "dog", parameters={**wishes, "max_tokens": 60})[0].output_tokens == 60


def test_a_client_that_reads_nothing_holds_up_nobody(house: House, client: Client) -> None:
    """Four of them, with answers of a megabyte each; they find all of it when they read at last."""
    wishes = {"max_tokens": 300, "ignore_eos": True, "temperature": 0, "logprobs": 20}
    document = json.dumps({"text_input": "fox", "stream": True, "sampling_parameters": json.dumps(wishes)}).encode()
    host, port = house.serving.http_url.split(":")
    lazy = []
    for _ in range(4):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        head = f"POST /v2/models/plain/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(document)}\r\n\r\n"
        connection.sendall(head.encode() + document)
        lazy.append(connection)
    (answer,) = client.predict("small", "fox", parameters={"max_tokens": 200, "ignore_eos": True})
    assert answer.output_tokens == 200
    for connection in lazy:
        connection.settimeout(60)
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += (part := connection.recv(1 << 16))
            assert part, "the server has hung up"
        connection.close()
        events = [line for line in received.split(b"\n") if line.startswith(b"data: ")]
        assert b'"finish_reason":"length"' in events[-1]
        assert len(received) > 1 << 19


def test_twenty_adapters_where_eight_fit(house: House, client: Client, tmp_path: Path) -> None:
    """Each answers as it does alone, without a server, while all are asked."""
    names, wishes = [f"adapted{number}" for number in range(20)], {"max_tokens": 8, "temperature": 0}
    model = house.serving.repository.parent / "model"
    tasks = []
    for number, name in enumerate(names):
        bare = AutoModelForCausalLM.from_pretrained(model)
        adapter = save_adapter(tmp_path / name, bare, lora(4, "q_proj", "o_proj"), seed=number, scale=0.3)
        tasks.append(house.task(name, adapter=Pretrained(adapter), decoder=Generator(chat=False)))
        tasks[-1].save()
        house.serving.load(name)
    eventually(lambda: {*names} <= {*client.tasks()}, "they are served")

    def in_memory() -> int:
        told = client.tasks()
        found = [told[name].adapter_in_memory for name in names]
        assert None not in found
        return sum(map(bool, found))

    assert in_memory() <= ROOM
    with ThreadPoolExecutor(10) as pool:
        asked = {
            (number, text): pool.submit(client.predict, names[number], text, parameters=wishes)
            for text in ("fox", "lazy dog")
            for number in range(20)
        }
        answers = {key: each.result()[0].text for key, each in asked.items()}
    assert 0 < in_memory() <= ROOM
    for number, task in enumerate(tasks):
        alone = [each.text for each in task.predict(["fox", "lazy dog"], parameters=wishes)]
        assert [answers[number, "fox"], answers[number, "lazy dog"]] == alone
    assert len(set(answers.values())) > 20
