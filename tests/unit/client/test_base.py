"""The steps that both clients share, over a transport whose server and clock are the test's."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from fmplex import (
    AsyncClient,
    Busy,
    Client,
    ControlClosed,
    DeadlineExceeded,
    ServerProblem,
    TaskProblem,
    Unreachable,
    Values,
)
from fmplex.client.connection import LAST_TRY_S, RETRIES
from fmplex.client.wire import FIRST_BACKOFF_S, Interface
from fmplex_backend.control_key import keep_key

FULL = InferenceServerException("'length' has 9 requests waiting, its max_queue is 9", status="StatusCode.UNAVAILABLE")
GOING = InferenceServerException("the server is going down", status="StatusCode.UNAVAILABLE")
UNLOADED = InferenceServerException(
    "Request for unknown model: 'length' has no available versions", status="StatusCode.NOT_FOUND"
)
WRONG = InferenceServerException("no such thing", status="StatusCode.INVALID_ARGUMENT")
REFUSED = ConnectionRefusedError(111, "Connection refused")
CONFIG = {"name": "length", "max_batch_size": 2, "input": [{"name": "TEXT"}], "output": [{"name": "SCORES"}]}
LENGTH = Interface("length", "regression", (), ("SCORES",), 2)


class Lengths:
    """An answer of the server: SCORES [n, 1], the lengths of texts."""

    def __init__(self, texts: list[bytes]) -> None:
        self._texts = texts

    def as_numpy(self, name: str) -> np.ndarray:
        assert name in ("SCORES", "usage")
        return np.array([[len(text)] for text in self._texts], np.float32)


class FakeTransport:
    """Fails as often as `failures` say, takes `seconds` of its own clock for each request, and sleeps at once."""

    def __init__(self, http: bool) -> None:
        self.http = http
        self.now = 1000.0
        self.seconds = 0.0
        self.slept: list[float] = []
        self.sent: list[tuple[str, dict[str, Any], float | None]] = []
        self.failures: dict[str, list[Exception]] = defaultdict(list)
        self.closed = False
        self.config = CONFIG
        self.parts: list[Any] = []
        self.closed_streams = 0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def gather(self, calls: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
        return [await call for call in calls]

    async def close(self) -> None:
        self.closed = True

    async def stream(self, request: Any, headers: Any, timeout: float | None) -> AsyncGenerator[Any, None]:
        """A part for each of `parts`, after `seconds` each; an exception among them is raised in its place."""
        self.sent.append(("stream", {"request": request, "headers": headers}, timeout))
        limit = None if timeout is None else self.now + timeout
        failures = [self.failures["stream"].pop(0)] if self.failures["stream"] else []
        try:
            for part in failures or self.parts:
                if limit is not None and self.now + self.seconds > limit:
                    self.now = limit
                    raise TimeoutError
                self.now += self.seconds
                if isinstance(part, Exception):
                    raise part
                yield part
        finally:
            self.closed_streams += 1

    async def send(self, method: str, arguments: Mapping[str, Any], timeout: float | None) -> Any:
        self.sent.append((method, dict(arguments), timeout))
        if timeout is not None and timeout < self.seconds:
            self.now += timeout
            raise TimeoutError
        self.now += self.seconds
        if self.failures[method]:
            raise self.failures[method].pop(0)
        return self._answer(method, arguments)

    def _answer(self, method: str, arguments: Mapping[str, Any]) -> Any:
        if method == "infer":
            return Lengths(texts_of(arguments))
        models = [{"name": "length", "state": "READY"}, {"name": "gone"}]
        documents = {
            "get_model_config": self.config if self.http else {"config": self.config},
            "get_model_repository_index": models if self.http else {"models": models},
            "is_server_ready": True,
        }
        return documents.get(method)

    @property
    def methods(self) -> list[str]:
        return [method for method, _, _ in self.sent]


def texts_of(arguments: Mapping[str, Any]) -> list[bytes]:
    """The texts of an `infer`: 4 bytes of length before each, as both protocols have it."""
    (tensor,) = arguments["inputs"]
    raw = tensor._get_content() if hasattr(tensor, "_get_content") else tensor._get_binary_data()
    found = []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        found.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    return found


class Bench:
    """A client of one kind on a fake transport; `call` waits for either kind's answers."""

    def __init__(self, kind: type[Client] | type[AsyncClient], url: str) -> None:
        self.kind, self.url = kind, url
        self.transport = transport = FakeTransport(url.startswith("http"))
        self._class: Any = type(kind.__name__, (kind,), {"_connect": lambda self, address: transport})
        self.client = self.make()

    def make(self, **options: Any) -> Any:
        self.client = self._class(self.url, **options)
        return self.client

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        answer = getattr(self.client, method)(*arguments, **options)
        if isinstance(answer, AsyncGenerator):
            return asyncio.run(collected(answer))
        if isinstance(answer, Iterator):
            return list(answer)
        return asyncio.run(answer) if asyncio.iscoroutine(answer) else answer


async def collected(parts: AsyncGenerator[Any, None]) -> list[Any]:
    return [part async for part in parts]


@pytest.fixture(params=["host:8001", "http://host:8000"], ids=["grpc", "http"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[Client, AsyncClient])
def bench(request: pytest.FixtureRequest, url: str) -> Bench:
    return Bench(request.param, url)


def test_both_clients_offer_the_same() -> None:
    def offers(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert offers(Client) - offers(AsyncClient) == {"submit"}  # asyncio has tasks
    assert offers(AsyncClient) <= offers(Client)


CALLS = {
    "predict": ("predict", "length", ["a"]),
    "stream": ("stream", "length", "a"),
    "outputs": ("outputs", "length", ["a"]),
    "interface": ("interface", "length"),
    "tasks": ("tasks",),
    "load": ("load", "length"),
    "unload": ("unload", "length"),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


class TestCalls:
    def test_predict_sends_batches_and_keeps_the_order(self, bench: Bench) -> None:
        found = bench.call("predict", "length", ["a", "bb", "ccc", "dddd", "eeeee"])
        assert all(isinstance(each, Values) for each in found)
        assert [each.value for each in found] == [1, 2, 3, 4, 5]
        assert bench.transport.methods == ["get_model_config", "infer", "infer", "infer"]
        sizes = [len(texts_of(arguments)) for _, arguments, _ in bench.transport.sent[1:]]
        assert sizes == [2, 2, 1]

    def test_one_text_is_a_list_of_one(self, bench: Bench) -> None:
        (found,) = bench.call("predict", "length", "four")
        assert found.value == 4
        assert [each["SCORES"].tolist() for each in bench.call("outputs", "length", "four")] == [[4]]

    def test_no_text_is_no_request(self, bench: Bench) -> None:
        assert bench.call("predict", "length", []) == []
        assert "infer" not in bench.transport.methods

    def test_outputs_are_a_texts_own(self, bench: Bench) -> None:
        found = bench.call("outputs", "length", ["a", "bb", "ccc"])
        assert [each["SCORES"].tolist() for each in found] == [[1], [2], [3]]

    def test_wrong_rows_are_not_sent(self, bench: Bench) -> None:
        with pytest.raises(TaskProblem, match="reads texts"):
            bench.call("predict", "length", [1.5])
        assert "infer" not in bench.transport.methods

    def test_the_interface_is_asked_for_once(self, bench: Bench) -> None:
        assert bench.call("interface", "length") == LENGTH
        bench.call("predict", "length", "a")
        assert bench.transport.methods == ["get_model_config", "infer"]

    @pytest.mark.parametrize("change", ["load", "unload"])
    def test_a_change_makes_it_forget_the_interface(self, bench: Bench, change: str) -> None:
        bench.call("interface", "length")
        bench.call(change, "length")
        assert bench.transport.methods[1] == f"{change}_model"
        assert bench.transport.sent[1][1]["model_name"] == "length"
        bench.transport.sent.clear()
        bench.call("interface", "length")
        assert bench.transport.methods == ["get_model_config"]

    @pytest.mark.parametrize(
        "error",
        [
            InferenceServerException("Exception deserializing response!", "StatusCode.INTERNAL"),
            UnicodeDecodeError("utf-8", b"x\xff", 1, 2, "invalid start byte"),
        ],
    )
    def test_an_index_with_a_name_that_is_not_utf8(self, bench: Bench, error: Exception) -> None:
        bench.transport.failures["get_model_repository_index"] = [error]
        with pytest.raises(ServerProblem, match=r"not UTF-8\. Rename that directory"):
            bench.call("tasks")

    def test_an_index_that_a_link_to_nowhere_spoils(self, bench: Bench) -> None:
        error = InferenceServerException("failed to stat file /models/dangling", "StatusCode.INTERNAL")
        bench.transport.failures["get_model_repository_index"] = [error]
        said = r"cannot list its models: /models/dangling is a link that leads nowhere, .*\. Remove it, or move it out"
        with pytest.raises(ServerProblem, match=said):
            bench.call("tasks")

    def test_headers_and_wishes_go_along(self, bench: Bench) -> None:
        bench.make(headers={"key": "secret"})
        bench.call("predict", "length", "a", slo_ms=12.5)
        assert [arguments["headers"] for _, arguments, _ in bench.transport.sent] == [{"key": "secret"}] * 2
        assert bench.transport.sent[1][1]["parameters"] == {"slo_ms": "12.5"}

    def test_close(self, bench: Bench) -> None:
        bench.call("close")
        assert bench.transport.closed


class TestUsage:
    def test_the_receipt_comes_when_it_is_asked_for(self, bench: Bench) -> None:
        bench.call("outputs", "length", "a")
        (found,) = bench.call("outputs", "length", "a", usage=True)
        assert sorted(found) == ["SCORES", "usage"]
        asked = [[output.name() for output in arguments["outputs"]] for _, arguments, _ in bench.transport.sent[1:]]
        assert asked == [["SCORES"], ["SCORES", "usage"]]


class Part:
    """A response of a stream: SCORES of each text so far."""

    def __init__(self, *lengths: int) -> None:
        self.scores = np.array(lengths, np.float32)[:, None]

    def get_response(self) -> Any:
        return SimpleNamespace(outputs=[SimpleNamespace(name="SCORES")])

    def as_numpy(self, name: str) -> np.ndarray:
        assert name == "SCORES"
        return self.scores


@pytest.fixture
def streaming(request: pytest.FixtureRequest, bench: Bench) -> Bench:
    """The task answers in three parts."""
    bench.transport.config = CONFIG | {"model_transaction_policy": {"decoupled": True}}
    bench.transport.parts = [Part(1), Part(2), Part(3)]
    return bench


class TestStreams:
    def test_parts_come_as_results(self, streaming: Bench) -> None:
        assert [part.value for part in streaming.call("stream", "length", "a")] == [1, 2, 3]
        _, arguments, _ = streaming.transport.sent[-1]
        assert arguments["request"].model_name == "length"
        assert streaming.transport.closed_streams == 1

    def test_predict_joins_them_by_item_and_asks_batch_by_batch(self, streaming: Bench) -> None:
        streaming.transport.parts = [Part(1, 10), Part(2, 20)]
        found = streaming.call("predict", "length", ["a", "b", "c", "d"], slo_ms=5, request_id="one-7")
        assert [each.value for each in found] == [2, 20, 2, 20]
        assert streaming.transport.methods == ["get_model_config", "stream", "stream"]
        request = streaming.transport.sent[1][1]["request"]
        assert list(request.inputs[0].shape) == [2, 1]
        assert request.parameters["slo_ms"].string_param == "5"
        assert [each["request"].id for method, each, _ in streaming.transport.sent[1:]] == ["one-7"] * 2
        (outputs,) = streaming.call("outputs", "length", "a")
        assert outputs["SCORES"].tolist() == [2]

    def test_every_request_of_a_call_has_its_id(self, bench: Bench) -> None:
        bench.call("predict", "length", ["a", "b", "c"], request_id="one-7")
        list(bench.call("stream", "length", "a", request_id="two"))
        bench.call("predict", "length", "a")
        ids = [arguments["request_id"] for method, arguments, _ in bench.transport.sent if method == "infer"]
        assert ids == ["one-7", "one-7", "two", ""]

    def test_a_task_that_answers_in_one_part_has_a_stream_of_one(self, bench: Bench) -> None:
        assert [part.value for part in bench.call("stream", "length", "four")] == [4]

    @pytest.mark.parametrize("call", ["stream", "predict", "outputs"])
    def test_an_error_in_a_part_is_the_calls_and_nothing_is_sent_again(self, streaming: Bench, call: str) -> None:
        streaming.transport.parts = [Part(1), FULL]
        with pytest.raises(Busy, match="its max_queue is 9"):
            streaming.call(call, "length", "a")
        assert streaming.transport.methods == ["get_model_config", "stream"]
        assert streaming.transport.slept == []

    @pytest.mark.parametrize("error", [FULL, REFUSED])
    def test_before_the_first_part_it_is_sent_again(self, streaming: Bench, error: Exception) -> None:
        streaming.transport.failures["stream"] = [error, error]
        assert [part.value for part in streaming.call("stream", "length", "a")] == [1, 2, 3]
        assert len(streaming.transport.slept) == 2

    def test_no_part_is_an_error(self, streaming: Bench) -> None:
        streaming.transport.parts = []
        with pytest.raises(ServerProblem, match="'length' has sent no answer"):
            streaming.call("predict", "length", "a")

    def test_one_deadline_for_the_whole_stream(self, streaming: Bench) -> None:
        streaming.transport.seconds = 1.0
        with pytest.raises(DeadlineExceeded, match="within the time given"):
            streaming.call("predict", "length", "a", timeout=3.5)  # the look-up, and two parts
        assert streaming.transport.now == pytest.approx(1003.5)

    def test_a_reader_who_takes_too_long(self, streaming: Bench) -> None:
        async def read(parts: AsyncGenerator[Any, None]) -> None:
            assert (await anext(parts)).value == 1
            streaming.transport.now += 2.0
            await anext(parts)

        def read_blocking(parts: Iterator[Any]) -> None:
            assert next(parts).value == 1
            streaming.transport.now += 2.0
            next(parts)

        parts = streaming.client.stream("length", "a", timeout=1.0)
        with pytest.raises(DeadlineExceeded):
            asyncio.run(read(parts)) if streaming.kind is AsyncClient else read_blocking(parts)
        assert streaming.transport.closed_streams == 1

    def test_who_stops_reading_cancels(self, streaming: Bench) -> None:
        async def first_of(parts: AsyncGenerator[Any, None]) -> Any:
            async with aclosing(parts):
                return await anext(parts)

        parts = streaming.client.stream("length", "a")
        if streaming.kind is AsyncClient:
            found = asyncio.run(first_of(parts))
        else:
            found = next(parts)
            parts.close()
        assert found.value == 1
        assert streaming.transport.closed_streams == 1

    def test_a_stream_of_another_input_is_not_sent(self, streaming: Bench) -> None:
        with pytest.raises(TaskProblem, match="reads texts"):
            streaming.call("stream", "length", 1.5)
        assert streaming.transport.methods == ["get_model_config"]


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "raised", "message"),
        [
            (WRONG, ServerProblem, "^no such thing$"),
            (FULL, Busy, "host.*its max_queue is 9"),
            (GOING, Unreachable, "host.*going down"),
            (REFUSED, Unreachable, "host.*Connection refused"),
            (InferenceServerException("late", status="504"), DeadlineExceeded, "within the time given: late"),
        ],
    )
    @every_call
    def test_every_call_raises_the_same(
        self, bench: Bench, call: tuple[Any, ...], error: Exception, raised: type[Exception], message: str
    ) -> None:
        bench.make(retries=0)
        bench.transport.failures = defaultdict(lambda: [error])
        with pytest.raises(ServerProblem, match=message) as caught:
            bench.call(*call)
        assert type(caught.value) is raised

    @pytest.mark.parametrize("change", ["load", "unload"])
    def test_a_server_that_polls_needs_no_telling(self, bench: Bench, change: str) -> None:
        polls = InferenceServerException("explicit model load / unload is not allowed if polling is enabled")
        bench.transport.failures[f"{change}_model"] = [polls]
        bench.call(change, "length")
        assert bench.transport.methods == [f"{change}_model"]


class TestRetries:
    @pytest.mark.parametrize("error", [FULL, GOING, REFUSED, ConnectionResetError("reset")])
    @every_call
    def test_what_is_transient_is_sent_again(self, bench: Bench, call: tuple[Any, ...], error: Exception) -> None:
        failing = {"predict": "infer", "stream": "infer", "outputs": "infer", "interface": "get_model_config"}
        method = failing.get(call[0], "get_model_repository_index" if call[0] == "tasks" else f"{call[0]}_model")
        bench.transport.failures[method] = [error, error]
        bench.call(*call)
        assert bench.transport.methods.count(method) == 3

    def test_backoff_doubles(self, bench: Bench) -> None:
        bench.transport.failures["infer"] = [FULL] * 4
        bench.call("predict", "length", "a")
        most = [FIRST_BACKOFF_S * 2**number for number in range(4)]
        assert all(0.5 * limit <= slept <= limit for slept, limit in zip(bench.transport.slept, most, strict=True))

    def test_retries_end(self, bench: Bench) -> None:
        bench.make(retries=2)
        bench.transport.failures["infer"] = [FULL] * 9
        with pytest.raises(Busy, match="its max_queue is 9"):
            bench.call("predict", "length", "a", timeout=1000.0)
        assert bench.transport.methods.count("infer") == 3
        assert len(bench.transport.slept) == 2

    def test_without_a_deadline_they_end_by_themselves(self, bench: Bench) -> None:
        bench.transport.failures["infer"] = [FULL] * 9
        with pytest.raises(Busy):
            bench.call("predict", "length", "a")
        assert bench.transport.methods.count("infer") == 1 + RETRIES

    @pytest.mark.parametrize("error", [FULL, GOING, ConnectionResetError("reset")])
    @every_call
    def test_with_one_they_go_on_until_then(self, bench: Bench, call: tuple[Any, ...], error: Exception) -> None:
        bench.transport.failures = defaultdict(lambda: [error] * 1000)
        with pytest.raises((Busy, Unreachable)):
            bench.call(*call, timeout=60.0)
        assert 1060.0 - LAST_TRY_S <= bench.transport.now <= 1060.0
        assert len(bench.transport.sent) < 60

    def test_nobody_at_an_address_that_never_answered_is_given_up_soon(self, bench: Bench) -> None:
        bench.transport.failures["get_model_config"] = [REFUSED] * 1000
        with pytest.raises(Unreachable, match=r"host.*no server there .*fmplex serve"):
            bench.call("predict", "length", "a", timeout=60.0)
        assert len(bench.transport.slept) == RETRIES
        assert bench.transport.now < 1001.0

    def test_a_server_that_has_answered_is_waited_for(self, bench: Bench) -> None:
        bench.call("interface", "length")
        bench.transport.failures["infer"] = [REFUSED] * 20
        (found,) = bench.call("predict", "length", "four", timeout=60.0)
        assert found.value == 4

    @pytest.mark.parametrize(
        ("message", "status", "kind", "says"),
        [
            ("no such thing", "INVALID_ARGUMENT", ServerProblem, "no such thing"),
            ("This protocol is restricted, expecting header 'key'", "UNAVAILABLE", ControlClosed, "control key"),
        ],
    )
    def test_what_stays_wrong_is_not(
        self, bench: Bench, message: str, status: str, kind: type[ServerProblem], says: str
    ) -> None:
        bench.transport.failures["load_model"] = [InferenceServerException(message, status=f"StatusCode.{status}")]
        with pytest.raises(kind, match=says):
            bench.call("load", "length")
        assert bench.transport.slept == []

    @pytest.mark.parametrize("ready", [True, False])
    def test_a_model_that_is_missing_because_the_server_goes_down_is_asked_for_again(
        self, bench: Bench, ready: bool
    ) -> None:
        bench.transport.failures["infer"] = [UNLOADED]
        if not ready:
            bench.transport.failures["is_server_ready"] = [FULL]
            bench.call("predict", "length", "a")
            assert len(bench.transport.slept) == 1
            return
        with pytest.raises(ServerProblem, match="no available versions") as raised:
            bench.call("predict", "length", "a")
        assert not isinstance(raised.value, Unreachable)
        assert bench.transport.slept == []


class TestControlKey:
    @pytest.fixture
    def at_home(self, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
        """The server is on this host, and its key is kept."""
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        bench.url = "http://127.0.0.1:8000" if bench.transport.http else "localhost:8000"
        keep_key(8000, "kept")
        bench.make()
        return bench

    def sent(self, bench: Bench, **options: Any) -> list[Any]:
        """The key with each of a load, a list, and a request of a task."""
        bench.make(**options)
        for call in (("load", "length"), ("tasks",), ("predict", "length", "a")):
            bench.call(*call)
        header = "fmplex-key" if bench.transport.http else "triton-grpc-protocol-fmplex-key"
        headers = {method: arguments["headers"] or {} for method, arguments, _ in bench.transport.sent}
        return [headers[method].get(header) for method in ("load_model", "get_model_repository_index", "infer")]

    def test_the_kept_one_goes_with_control_alone(self, at_home: Bench) -> None:
        assert self.sent(at_home) == ["kept", "kept", None]

    def test_the_environment_comes_before_it_and_what_is_given_before_both(
        self, at_home: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FMPLEX_CONTROL_KEY", "environment")
        assert self.sent(at_home) == ["environment", "environment", None]
        assert self.sent(at_home, control_key="given") == ["given", "given", None]

    def test_headers_of_the_caller_come_first(self, at_home: Bench) -> None:
        header = "fmplex-key" if at_home.transport.http else "triton-grpc-protocol-fmplex-key"
        assert self.sent(at_home, headers={header: "mine"}) == ["mine", "mine", "mine"]

    @pytest.mark.parametrize("host", ["example.org:8000", "10.0.0.1:8000", "127.0.0.1:8001", "localhost", "[::2]:8000"])
    def test_another_server_gets_none(self, at_home: Bench, host: str) -> None:
        at_home.url = f"http://{host}" if at_home.transport.http else host
        assert self.sent(at_home) == [None, None, None]

    @pytest.mark.parametrize("url", ["[::1]:8000", "127.1.2.3:8000"])
    def test_every_loopback_address_is_this_host(self, at_home: Bench, url: str) -> None:
        at_home.url = f"http://{url}" if at_home.transport.http else url
        assert self.sent(at_home) == ["kept", "kept", None]

    @pytest.mark.parametrize("key", ["kl\u00e4r", "two words", "two\nlines"])
    def test_one_that_no_header_carries_is_named(self, at_home: Bench, key: str) -> None:
        at_home.make(control_key=key)
        with pytest.raises(ServerProblem, match="control_key: the control key has a space or is not printable ASCII"):
            at_home.call("tasks")
        assert at_home.transport.sent == []

    @pytest.mark.parametrize(
        ("key", "problem"), [("wrong", "is not this server's"), (None, "it wants its control key")]
    )
    def test_a_closed_server_says_what_to_do(self, bench: Bench, key: str | None, problem: str) -> None:
        bench.make(control_key=key)
        what = "API" if bench.transport.http else "protocol"
        closed = InferenceServerException(
            f"This {what} is restricted, expecting header 'key'", "StatusCode.UNAVAILABLE"
        )
        bench.transport.failures["load_model"] = [closed]
        with pytest.raises(ServerProblem, match=f"{problem}.*FMPLEX_CONTROL_KEY") as raised:
            bench.call("load", "length")
        assert not isinstance(raised.value, Unreachable)
        assert bench.transport.slept == []


class TestDeadline:
    @every_call
    @pytest.mark.parametrize("own", [True, False], ids=["of the call", "of the client"])
    def test_every_call_has_one(self, bench: Bench, call: tuple[Any, ...], own: bool) -> None:
        bench.make(timeout=60.0 if own else 0.2)
        bench.transport.seconds = 5.0
        with pytest.raises(DeadlineExceeded, match=r"host.*no answer within the time given"):
            bench.call(*call, **({"timeout": 0.2} if own else {}))
        assert bench.transport.now == pytest.approx(1000.2)

    @every_call
    def test_without_a_timeout_there_is_none(self, bench: Bench, call: tuple[Any, ...]) -> None:
        bench.transport.seconds = 1e6
        bench.call(*call)
        assert {timeout for _, _, timeout in bench.transport.sent} == {None}

    def test_one_for_the_look_up_and_all_batches(self, bench: Bench) -> None:
        bench.transport.seconds = 1.0
        with pytest.raises(DeadlineExceeded):
            bench.call("predict", "length", ["a"] * 6, timeout=3.5)
        assert bench.transport.methods == ["get_model_config", "infer", "infer", "infer"]
        given = [timeout for _, _, timeout in bench.transport.sent]
        assert given == pytest.approx([3.5, 2.5, 1.5, 0.5])
        assert bench.transport.now == pytest.approx(1003.5)

    @every_call
    def test_retries_and_their_backoff_are_in_it(self, bench: Bench, call: tuple[Any, ...]) -> None:
        bench.make(retries=1000)
        bench.transport.failures = defaultdict(lambda: [FULL] * 1000)
        with pytest.raises(Busy, match="its max_queue is 9"):
            bench.call(*call, timeout=1.0)
        assert 1000.9 < bench.transport.now <= 1001.0

    def test_a_try_that_takes_too_long_says_what_was_before(self, bench: Bench) -> None:
        bench.call("interface", "length")
        bench.transport.failures["infer"] = [FULL]
        bench.transport.seconds = 0.7
        with pytest.raises(
            DeadlineExceeded, match=r"within the time given; the try before: .*its max_queue is 9.*\. Give it longer"
        ):
            bench.call("predict", "length", "a", timeout=1.0)
        assert bench.transport.now == pytest.approx(1001.0)

    def test_no_time_is_no_request(self, bench: Bench) -> None:
        with pytest.raises(DeadlineExceeded):
            bench.call("tasks", timeout=0.0)
        assert bench.transport.sent == []


class TestWaitFor:
    def wait(self, bench: Bench, condition: Callable[[], bool]) -> None:
        async def awaited() -> bool:
            return condition()

        bench.call("wait_for", "length", condition if bench.kind is Client else awaited, 5.0)

    def test_polls_until_it_holds(self, bench: Bench) -> None:
        answers = iter([False, ServerProblem("not yet"), True])

        def condition() -> bool:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        bench.call("interface", "length")
        self.wait(bench, condition)
        assert len(bench.transport.slept) == 2
        bench.call("interface", "length")
        assert bench.transport.methods == ["get_model_config"] * 2  # it may have changed

    def test_gives_up_with_the_last_error(self, bench: Bench) -> None:
        def condition() -> bool:
            raise ServerProblem("still loading")

        with pytest.raises(DeadlineExceeded, match="'length' is not served after 5 s: still loading"):
            self.wait(bench, condition)
        assert bench.transport.now == pytest.approx(1005.0, abs=0.1)

    def test_an_old_version_answers(self, bench: Bench) -> None:
        with pytest.raises(DeadlineExceeded, match="not with this version"):
            self.wait(bench, lambda: False)
