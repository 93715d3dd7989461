"""A family of a package of its own on the real server: its line in the registry is all that the server is told."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from fake_family.spec import Counted, Counter, Words
from installed import fake_family_installed, install_fake_family
from measuring import figure, undisturbed
from stub_environment import make_environment, site_packages
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

from fmplex import AsyncClient, Backbone, Client, DeadlineExceeded, ServerProblem, Task, TaskProblem
from fmplex.cli import app as commands
from fmplex.cli import demo
from fmplex_backend.status import BackboneStatus
from testing.repositories import write_backbone
from testing.servers import Serving, eventually, serving

BACKBONE = "counting"
STEP_S = 0.1
LINE = "stream steps=4 a b"
ANSWER = Counted((1, 2, 3, 4), 7.0)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with a package of the family in its environment, two tasks, and backbones that say `decoupled`."""
    folder = tmp_path_factory.mktemp("family")
    variables = make_environment(folder / "environment")
    install_fake_family(site_packages(folder / "environment"))
    repository = folder / "repository"
    for name in (BACKBONE, "decoupled", "forbidden"):
        write_backbone(repository, name, model="none", family="fake", threads="1", step_ms=f"{STEP_S * 1000:g}")
    for name, value in (("decoupled", "true"), ("forbidden", "false")):
        with (repository / name / "config.pbtxt").open("a") as config:
            config.write(f"model_transaction_policy {{ decoupled: {value} }}\n")
    with fake_family_installed(folder / "here"):
        for name in ("count", "other"):
            counting(repository, name).save()
        with serving(repository, folder, variables=variables) as server:
            yield server


def counting(repository: Path, name: str, mark: float = 7.0, **options: Any) -> Task:
    return Task(name, Backbone(BACKBONE, repository=repository), decoder=Counter(mark=mark), **options)


@pytest.fixture
def client(served: Serving) -> Iterator[Client]:
    with Client(served.grpc_url, timeout=30) as client:
        yield client


def test_a_config_that_forbids_several_responses_is_refused(served: Serving) -> None:
    (reason,) = served.refused
    assert reason.startswith("forbidden: ")
    assert "BackboneRefused: forbidden/config.pbtxt: model_transaction_policy.decoupled: it is false" in reason


class Stream:
    """tritonclient's own stream of responses, each with the time at which it came."""

    def __init__(self, url: str, task: str, *lines: str) -> None:
        self.arrived: Queue[tuple[float, Any, InferenceServerException | None]] = Queue()
        tensor = grpcclient.InferInput("WORDS", [len(lines), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[line.encode()] for line in lines], dtype=np.object_))
        with grpcclient.InferenceServerClient(url) as client:
            client.start_stream(lambda result, error: self.arrived.put((time.monotonic(), result, error)))
            client.async_stream_infer(task, [tensor])
            client.stop_stream()  # waits for the last response

    def responses(self) -> list[tuple[float, Any, InferenceServerException | None]]:
        """All that came."""
        return [self.arrived.get_nowait() for _ in range(self.arrived.qsize())]


def is_final(result: Any) -> bool:
    return bool(result.get_response().parameters["triton_final_response"].bool_param)


def test_parts_come_one_by_one_in_order_and_the_last_is_final(served: Serving) -> None:
    def measure() -> list[tuple[float, Any, InferenceServerException | None]]:
        found = Stream(served.grpc_url, "count", LINE, "steps=4 x").responses()
        figure(found[-1][0] - found[0][0] > 2 * STEP_S, "they came together")
        return found

    found = undisturbed(measure)
    results = [result for _, result, error in found if error is None]
    assert len(results) == len(found) == 4
    assert [result.as_numpy("COUNTS").tolist() for result in results] == [
        [[1], [1]],
        [[2], [2]],
        [[3], [2]],
        [[4], [2]],
    ]
    assert [is_final(result) for result in results] == [False, False, False, True]
    computed = [result.as_numpy("usage")[:, 1].tolist() for result in results]
    assert all(one == other for one, other in computed)
    steps = np.diff([one for one, _ in computed])
    assert (steps > 0.5e6 * STEP_S).all(), "a part's receipt is of the steps so far"
    assert all(result.as_numpy("usage")[:, 2].tolist() == [2, 2] for result in results)


def test_a_reply_of_one_part_is_final_at_once(served: Serving) -> None:
    ((_, result, error),) = Stream(served.grpc_url, "count", "a b c").responses()
    assert error is None
    assert is_final(result)
    assert result.as_numpy("COUNTS").tolist() == [[3]]


def test_an_error_takes_the_place_of_a_part(served: Serving) -> None:
    found = Stream(served.grpc_url, "count", "stream steps=4 undecodable").responses()
    assert [error is None for _, _, error in found] == [True, True, False]
    assert "the decoder of 'count' raised ValueError: this text says so" in str(found[-1][2])


def test_a_call_that_takes_one_response_is_refused_by_the_server(served: Serving) -> None:
    tensor = grpcclient.InferInput("WORDS", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"a"]], dtype=np.object_))
    with (
        grpcclient.InferenceServerClient(served.grpc_url) as client,
        pytest.raises(InferenceServerException, match="decoupled"),
    ):
        client.infer("count", [tensor])


# -- the clients


def ask_both(served: Serving, ask: Callable[[Any], Any], http: bool = False) -> Any:
    """What `ask` gets of a Client, after checking that an AsyncClient gives the same."""
    url = f"http://{served.http_url}" if http else served.grpc_url

    async def asked() -> Any:
        async with AsyncClient(url, timeout=30) as client:
            return await ask(client)

    with Client(url, timeout=30) as client:
        here = ask(client)
    assert here == asyncio.run(asked())
    return here


def test_what_the_task_says_here_and_the_clients_and_the_command_line_there(served: Serving) -> None:
    lines = [LINE, "steps=2 a", "a b c"]
    task = counting(served.repository, "count")
    here = [found for line in lines for found in task.predict(line)]
    assert here == [ANSWER, Counted((2,), 7.0), Counted((3,), 7.0)]
    apart = [ask_both(served, lambda client, line=line: client.predict("count", line))[0] for line in lines]
    assert apart == here
    result = CliRunner().invoke(
        commands.app, ["predict", "count", LINE, "--server", served.grpc_url, "--json"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == [{"counts": [1, 2, 3, 4], "mark": 7.0, "truncated": False}]


def test_several_lines_in_a_request_and_in_several(client: Client) -> None:
    """Lines of one request go step by step together: each has a part in every step."""
    assert client.predict("count", [LINE, "a"]) == [ANSWER, Counted((1, 1, 1, 1), 7.0)]
    size = client.interface("count").max_batch_size
    assert client.predict("count", ["a b"] * (size + 1)) == [Counted((2,), 7.0)] * (size + 1)
    assert client.submit("count", LINE).result(30) == [ANSWER]


def test_an_interface_says_that_parts_may_come(served: Serving) -> None:
    interface = ask_both(served, lambda client: client.interface("count"))
    assert (interface.kind, interface.takes, interface.size, interface.streams) == ("count", "WORDS", 1, True)
    assert ask_both(served, lambda client: client.interface("count"), http=True) == interface


def test_a_stream_gives_parts_as_they_come(served: Serving, client: Client) -> None:
    def measure() -> list[Any]:
        times, parts = [], []
        for part in client.stream("count", LINE):
            times.append(time.monotonic())
            parts.append(part)
        figure(times[-1] - times[0] > 2 * STEP_S, "they came together")
        return parts

    parts = undisturbed(measure)
    assert parts == [Counted((count,), 7.0) for count in ANSWER.counts]

    async def streamed() -> list[Any]:
        async with AsyncClient(served.grpc_url, timeout=30) as own:
            return [part async for part in own.stream("count", LINE)]

    assert asyncio.run(streamed()) == parts
    assert list(client.stream("count", "a b")) == [Counted((2,), 7.0)]


def test_an_error_after_some_parts(client: Client) -> None:
    stream = client.stream("count", "stream steps=4 undecodable")
    parts = [next(stream), next(stream)]
    with pytest.raises(ServerProblem, match="this text says so") as caught:
        next(stream)
    assert [part.counts for part in parts] == [(1,), (2,)]
    assert caught.value.status == "INTERNAL"
    with pytest.raises(ServerProblem, match="this text says so"):
        client.predict("count", "stream steps=4 undecodable")


def test_an_error_does_not_touch_what_ends_the_server(served: Serving, client: Client) -> None:
    """Triton 2.51 logs this when its own way to send a status, `triton_grpc_error`, takes the turn that may end it."""
    for line, status in (("refuse", "INVALID_ARGUMENT"), ("stream steps=2 undecodable", "INTERNAL")):
        with pytest.raises(ServerProblem, match="this text says so") as caught:
            client.predict("count", line)
        assert caught.value.status == status
        assert f"[{caught.value.status}" not in str(caught.value)
    assert "HandleCancellation called even when" not in served.log.read_text()


def test_a_request_that_is_refused(served: Serving, client: Client) -> None:
    with pytest.raises(ServerProblem, match="this text says so") as caught:
        client.predict("count", "refuse")
    assert caught.value.status == "INVALID_ARGUMENT"

    async def refused() -> None:
        async with AsyncClient(served.grpc_url, timeout=30) as own:
            await own.predict("count", "refuse")

    with pytest.raises(ServerProblem, match="this text says so"):
        asyncio.run(refused())


def test_one_deadline_for_a_whole_stream(served: Serving, client: Client) -> None:
    line = "stream steps=20 a"  # the server goes on with it: a cancelled call does not reach a backbone
    stream = client.stream("count", line, timeout=10 * STEP_S)
    start = time.monotonic()
    assert next(stream) == Counted((1,), 7.0)
    with pytest.raises(DeadlineExceeded):
        list(stream)
    assert time.monotonic() - start < 10 * STEP_S + 2

    async def expired() -> None:
        async with AsyncClient(served.grpc_url) as own:
            await own.predict("count", line, timeout=10 * STEP_S)

    with pytest.raises(DeadlineExceeded):
        asyncio.run(expired())


def test_http_says_to_use_grpc(served: Serving) -> None:
    with Client(f"http://{served.http_url}") as client, pytest.raises(TaskProblem, match="gRPC"):
        client.predict("count", LINE)


def test_who_stops_reading_can_go_on_asking(served: Serving, client: Client) -> None:
    parts = client.stream("count", "stream steps=30 a")
    assert next(parts) == Counted((1,), 7.0)
    parts.close()
    assert client.predict("count", "a") == [Counted((1,), 7.0)]

    async def first() -> Any:
        async with AsyncClient(served.grpc_url, timeout=30) as own:
            async with aclosing(own.stream("count", "stream steps=30 a")) as parts:
                found = await anext(parts)
            return found, await own.predict("count", "a")

    assert asyncio.run(first()) == (Counted((1,), 7.0), [Counted((1,), 7.0)])


def test_short_requests_of_other_tasks_join_a_long_one(client: Client) -> None:
    """A sequence waits at every step, so that others need not wait for its end."""
    long = client.stream("count", "stream steps=20 a")
    next(long)
    (answer,) = client.outputs("other", "a b", usage=True)
    assert answer["COUNTS"].tolist() == [2]
    assert answer["usage"].tolist()[2] >= 2, "it was alone in its batch"
    assert sum(1 for _ in long) == 19


# -- a task's life


def test_tasks_come_change_and_go_while_parts_are_sent(served: Serving, client: Client) -> None:
    """The streams of another task go on throughout."""
    problems: list[Exception] = []
    done = threading.Event()
    lasting = 0

    def keep_asking() -> None:
        nonlocal lasting
        with Client(served.grpc_url, timeout=30) as own:
            while not done.is_set():
                try:
                    assert own.predict("other", LINE) == [ANSWER]
                    lasting += 1
                except Exception as error:
                    problems.append(error)
                    return

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        task = counting(served.repository, "live", mark=1.0)
        assert task.deploy(served.grpc_url) == served.repository / "live" / "1"
        assert client.predict("live", LINE) == [Counted((1, 2, 3, 4), 1.0)]
        counting(served.repository, "live", mark=2.0, encoder=Words(repeat=2)).deploy(served.grpc_url)
        assert client.predict("live", LINE) == [Counted((2, 4, 6, 8), 2.0)]
        assert Task.load(served.repository / "live").predict(LINE) == [Counted((2, 4, 6, 8), 2.0)]
        assert task.rollback(server=served.grpc_url) == 1
        eventually(lambda: client.predict("live", LINE) == [Counted((1, 2, 3, 4), 1.0)], "the former version")
        line = ["task", "remove", "live", "-r", str(served.repository), "--server", served.grpc_url]
        assert CliRunner().invoke(commands.app, line).exit_code == 0
        with pytest.raises(ServerProblem, match="live"):
            client.predict("live", LINE)
        assert not (served.repository / "live").exists()
    finally:
        done.set()
        asking.join(60)
    assert not problems
    assert lasting > 0


def test_a_task_that_cannot_be_served_is_refused_alone(served: Serving, client: Client) -> None:
    path = counting(served.repository, "broken").save() / "task.json"
    path.write_text(path.read_text().replace('"mark": 7.0', '"mark": "high"'))
    for call in (lambda: client.load("broken"), lambda: client.predict("broken", "a")):
        with pytest.raises(ServerProblem, match=r"task\.json: decoder\.mark"):
            call()
    told = client.tasks()
    assert (told["broken"].state, told["count"].state) == ("refused", "serving")
    assert client.predict("count", "a") == [Counted((1,), 7.0)]
    client.unload("broken")


def test_a_backbone_that_answers_in_parts_tells_its_status(served: Serving, client: Client) -> None:
    """Over gRPC as a stream of one part; over HTTP, where Triton answers in one part, by `generate`."""
    told = client.status(BACKBONE)
    assert (told.family, {"count", "other"} <= {task.name for task in told.tasks}) == ("fake", True)
    request = urllib.request.Request(
        f"http://{served.http_url}/v2/models/{BACKBONE}/generate", json.dumps({"TASK": "count"}).encode()
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        (task,) = BackboneStatus.model_validate_json(json.load(response)["STATUS"]).tasks
    assert (task.name, task.state) == ("count", "serving")


def test_the_demo_asks_it_too(served: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    exchanges = asyncio.run(demo.ask_every_task(served.server))
    assert {exchange.task.name for exchange in exchanges} >= {"count", "other"}
    assert all(exchange.http is None and exchange.agreed for exchange in exchanges)
    demo.Console(width=200).print(demo.table(exchanges))
    shown = capsys.readouterr().out
    assert "counts [1, 2, 5], mark 7.0" in shown
    assert "stream steps=3 count these words" in shown
