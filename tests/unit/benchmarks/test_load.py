"""What the load generator sends when, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from contextlib import aclosing
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
from tritonclient.grpc import service_pb2

from benchmarks.load import Plan, Stream, closed
from benchmarks.load.arrivals import poisson
from benchmarks.load.client import Sender
from benchmarks.load.client import message as tensor_message
from benchmarks.load.http import HttpCalls, HttpError, message
from benchmarks.load.plan import Outcome, Reads
from benchmarks.load.record import Record, percentile_ms, summary
from benchmarks.load.traces import read_trace, replay

PLAN = Plan("url", [Stream(["a"], ["text"], 1)], seconds=10.0)


def recorded() -> Record:
    """The window is 100 to 110 s."""
    return Record(100.0, 110.0)


# -- arrivals


def test_poisson_arrivals_have_the_rate_and_the_same_times_for_a_seed() -> None:
    times = poisson(100.0, 50.0, seed=3)
    assert times == poisson(100.0, 50.0, seed=3) == sorted(times)
    assert times != poisson(100.0, 50.0, seed=4)
    assert len(times) == pytest.approx(5000, rel=0.05)
    assert max(times) < 50.0
    assert poisson(0.0, 50.0, seed=3) == []


# -- what is sent


@pytest.mark.parametrize(
    ("together", "expected"),
    [(False, {("a", "x"), ("b", "y")}), (True, {("a", "x"), ("b", "x"), ("a", "y"), ("b", "y")})],
)
def test_texts_go_to_tasks_in_turn_or_to_all_at_once(together: bool, expected: set[tuple[str, str]]) -> None:
    sent: list[tuple[str, str]] = []
    most = 0
    waiting = 0

    async def call(data: bytes) -> bytes:
        nonlocal most, waiting
        request = service_pb2.ModelInferRequest.FromString(data)
        sent.append((request.model_name, request.raw_input_contents[0][4:].decode()))
        assert [output.name for output in request.outputs] == ["SCORES"]
        waiting += 1
        most = max(most, waiting)
        await asyncio.sleep(0)
        waiting -= 1
        return b""

    stream = Stream(["a", "b"], ["x", "y"], 1, together=together, outputs=["SCORES"])
    asyncio.run(Sender(Plan("url", [stream], seconds=0.05, warmup=0.0), call).run())
    assert {*sent} == expected
    assert most == (2 if together else 1)


@pytest.mark.parametrize(
    ("reads", "content", "sent"),
    [
        (Reads("IMAGE_BYTES"), b"\xff\xd8", b"\x02\0\0\0\xff\xd8"),
        (Reads("SERIES", "FP32", (2, 1)), b"\0\0\x80?" * 2, b"\0\0\x80?" * 2),
    ],
)
def test_other_inputs_than_texts_are_sent(reads: Reads, content: bytes, sent: bytes) -> None:
    """And all outputs are asked for where none is named."""
    text = base64.b64encode(content).decode()
    request = service_pb2.ModelInferRequest.FromString(tensor_message("a", text, usage=True, outputs=(), reads=reads))
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype, tuple(tensor.shape)) == (reads.name, reads.datatype, (1, *reads.dims))
    assert list(request.raw_input_contents) == [sent]
    assert not request.outputs
    plan = Plan("url", [Stream(["a"], [text], 1, outputs=(), reads=reads)])
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))).streams[0].reads == reads


def test_requests_over_http_keep_their_connections_and_errors_are_told() -> None:
    paths: list[bytes] = []
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while head := await _head(reader):
            first, *fields = head.split(b"\r\n")
            sizes = dict(field.split(b": ") for field in fields if field)
            body = await reader.readexactly(int(sizes[b"Content-Length"]))
            document = json.loads(body[: int(sizes[b"Inference-Header-Content-Length"])])
            assert [output["name"] for output in document["outputs"]] == ["SCORES"]
            assert document["parameters"]["slo_ms"] == "20"
            assert body.endswith(b"\x04\0\0\0text")
            paths.append(first.split()[1])
            status = b"400 Bad Request" if b"wrong" in first else b"200 OK"
            writer.write(b"HTTP/1.1 %s\r\nContent-Length: 4\r\n\r\ndone" % status)
        writer.close()

    async def ask() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with aclosing(HttpCalls(host)) as calls:
                for task in ("a", "b"):
                    assert await calls(message(host, task, "text", ["SCORES"], slo_ms=20.0)) == b"done"
                with pytest.raises(HttpError, match="done"):
                    await calls(message(host, "wrong", "text", ["SCORES"], slo_ms=20.0))

    asyncio.run(ask())
    assert paths == [b"/v2/models/a/infer", b"/v2/models/b/infer", b"/v2/models/wrong/infer"]
    assert connections == 1


async def _head(reader: asyncio.StreamReader) -> bytes:
    """Of the next request; empty at the end."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


# -- records


def test_requests_due_before_or_after_the_window_are_not_counted() -> None:
    record = recorded()
    for due, done in ((99.0, 99.5), (105.0, 105.2), (109.9, 111.0), (110.0, 110.5)):
        record.offer("a", due)
        record.answer("a", due, done, 0.0, (0, 0))
    outcome = summary(record, PLAN)
    assert outcome.offered == 2  # due at 105 and 109.9
    assert outcome.answered == 1  # at 105.2
    assert outcome.failures == 0
    assert outcome.max_ms == pytest.approx(1100, rel=1e-2)
    assert outcome.mean_ms == pytest.approx((200 + 1100) / 2)


def test_latency_counts_from_when_a_request_was_due() -> None:
    record = recorded()
    record.offer("a", 101.0)
    record.sent(101.0, 101.4)
    record.answer("a", 101.0, 101.5, 0.0, (0, 0))
    outcome = summary(record, PLAN)
    assert outcome.p50_ms == pytest.approx(500, rel=1e-2)
    assert outcome.late_p99_ms == pytest.approx(400, rel=1e-2)


def test_rates_are_taken_from_answer_to_answer() -> None:
    record = recorded()
    for number in range(5):  # a batch of 10 at 101, 103, ... 109, the next one at 111
        for _ in range(10):
            record.offer("a", 101.0 + 2 * number)
            record.answer("a", 101.0 + 2 * number, 101.0 + 2 * number, 0.0, (0, 0))
    record.offer("a", 111.0)
    record.answer("a", 111.0, 111.0, 0.0, (0, 0))
    assert summary(record, PLAN).per_second == pytest.approx(5.0)


def test_errors_and_requests_without_an_answer_are_failures() -> None:
    record = recorded()
    for due in (101.0, 102.0, 103.0):
        record.offer("a", due)
    record.answer("a", 101.0, 101.1, 0.0, (0, 0))
    record.fail("a", 102.0, "UNAVAILABLE: full")
    outcome = summary(record, PLAN)
    assert outcome.failures == 2
    assert outcome.errors == {"UNAVAILABLE: full": 1}


def test_no_answer_at_all_is_no_good_latency() -> None:
    record = recorded()
    record.offer("a", 101.0)
    outcome = summary(record, PLAN)
    assert outcome.mean_ms == outcome.p99_ms == math.inf


def test_slos_and_receipts_are_counted_by_task() -> None:
    record = recorded()
    for task, latency, receipt in (("a", 0.04, (3000, 2)), ("a", 0.06, (5000, 2)), ("b", 0.01, (9000, 4))):
        record.offer(task, 101.0)
        record.answer(task, 101.0, 101.0 + latency, 50.0, receipt)
    outcome = summary(record, PLAN)
    assert {name: tally.within_slo for name, tally in outcome.tasks.items()} == {"a": 1, "b": 1}
    assert outcome.tasks["a"].batch_items == 2
    assert outcome.compute_ms == {"2": 4.0, "4": 9.0}


def test_percentiles_are_in_ms() -> None:
    assert percentile_ms([n / 1000 for n in range(1, 101)], 50) == pytest.approx(50, rel=1e-2)


def test_plans_and_outcomes_cross_as_json() -> None:
    plan = closed("url", ["a", "b"], ["x"], clients=3)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    record = recorded()
    record.offer("a", 101.0)
    record.answer("a", 101.0, 101.1, 0.0, (7, 1))
    outcome = summary(record, plan)
    assert Outcome.from_json(json.loads(json.dumps(asdict(outcome)))) == outcome


# -- traces

LLM = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:48.6805900,396,109
2023-11-16 18:15:47.6805900,100,9
"""
FUNCTIONS_2021 = "app,func,end_timestamp,duration\na,f,12.5,2.5\na,g,11,3\n"
FUNCTIONS_2019 = "HashOwner,HashApp,HashFunction,Trigger,1,2,3\no,a,f,http,2,0,1\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (LLM, [(0.0, "llm", 374), (1.0, "llm", 100), (2.0, "llm", 396)]),
        (FUNCTIONS_2021, [(0.0, "g", 0), (2.0, "f", 0)]),
        (FUNCTIONS_2019, [(0.0, "f", 0), (30.0, "f", 0), (120.0, "f", 0)]),
    ],
)
def test_traces_of_three_formats(tmp_path: Path, content: str, expected: list[tuple[float, str, int]]) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(content)
    trace = read_trace(file)
    assert [(each.function, each.tokens) for each in trace] == [each[1:] for each in expected]
    assert [each.time for each in trace] == pytest.approx([each[0] for each in expected])


def test_another_format_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no trace of a known format: a, b"):
        read_trace(file)


def test_a_replay_has_the_wanted_rate_and_keeps_the_bursts(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("HashOwner,HashApp,HashFunction,Trigger,1,2\no,a,f,http,10,1\n")
    part = replay(read_trace(file), rate=2.0, seconds=5.0)
    assert len(part) == 10
    assert part[0].time == 0.0
    assert max(each.time for each in part) < 5.0
    gaps = [after.time - before.time for before, after in pairwise(part)]
    assert gaps == pytest.approx([gaps[0]] * 9)
