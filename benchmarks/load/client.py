"""The generator's own process: `python -m benchmarks.load.client` reads plans from stdin, a JSON line each.

It sends messages over gRPC or HTTP that are serialised beforehand: what a client library does for each request (arrays,
copies, checks) would make the generator, and not the server, the bottleneck on a small machine.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import itertools
import json
import os
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from benchmarks.load import http
from benchmarks.load.plan import OUTPUTS, TEXT, Outcome, Plan, Reads, Stream
from benchmarks.load.record import Record, summary

METHOD = "/inference.GRPCInferenceService/ModelInfer"


def message(
    task: str,
    text: str,
    *,
    usage: bool,
    slo_ms: float = 0.0,
    outputs: Sequence[str] = OUTPUTS,
    reads: Reads = TEXT,
) -> bytes:
    """A serialised ModelInferRequest of one text, or of what `reads` says."""
    request = service_pb2.ModelInferRequest(model_name=task)
    request.inputs.add(name=reads.name, datatype=reads.datatype, shape=[1, *reads.dims])
    data = text.encode() if reads == TEXT else base64.b64decode(text)
    request.raw_input_contents.append(struct.pack("<I", len(data)) + data if reads.datatype == "BYTES" else data)
    for output in (*outputs, "usage") if usage and outputs else outputs:
        request.outputs.add(name=output)
    if slo_ms:
        request.parameters["slo_ms"].string_param = f"{slo_ms:g}"
    return bytes(request.SerializeToString())


def _receipt(answer: bytes) -> tuple[int, int]:
    """compute_us and batch_items of the usage receipt; zeros where the answer has none."""
    response = service_pb2.ModelInferResponse.FromString(answer)
    for output, content in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.name == "usage":
            _, compute_us, items = struct.unpack("<3q", content[:24])
            return int(compute_us), int(items)
    return 0, 0


def _asked(stream: Stream, number: int) -> list[tuple[str, str]]:
    """Tasks and texts of a stream's next request, or of those that go out together."""
    text = stream.texts[number % len(stream.texts)]
    return [(task, text) for task in (stream.tasks if stream.together else [stream.tasks[number % len(stream.tasks)]])]


class Sender:
    """Sends a plan's requests over one channel and records the answers."""

    def __init__(self, plan: Plan, call: Callable[[bytes], Any]) -> None:
        self.plan, self.call = plan, call
        self._messages: dict[tuple[str, str], bytes] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._ids = itertools.count()
        for stream in plan.streams:  # serialise before the clock starts
            for number in range(min(len(stream.texts) * len(stream.tasks), 4096)):
                for task, text in _asked(stream, number):
                    self._message(stream, task, text)
        self.start = time.perf_counter() + 0.05
        self.begin = self.start + plan.warmup
        self.end = self.begin + plan.seconds
        self.record = Record(self.begin, self.end, timeline=plan.timeline)

    async def run(self) -> None:
        """Run all streams until the end, then wait for what is in flight, at most `drain` seconds."""
        clients = [self._client(stream, turns) for stream, turns, count in self._closed() for _ in range(count)]
        opens = [self._open(stream) for stream in self.plan.streams if stream.times is not None]
        cpu = asyncio.create_task(self._watch_cpu())
        await asyncio.gather(cpu, *clients, *opens)
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=self.plan.drain)
            for task in late:
                task.cancel()

    def _closed(self) -> list[tuple[Stream, itertools.count[int], int]]:
        return [(stream, itertools.count(), stream.clients) for stream in self.plan.streams if stream.times is None]

    async def _client(self, stream: Stream, turns: itertools.count[int]) -> None:
        while (now := time.perf_counter()) < self.end:
            await self._all(stream, next(turns), now)

    async def _open(self, stream: Stream) -> None:
        for number, at in enumerate(stream.times or ()):
            due = self.start + at
            if due >= self.end:
                break
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            self.record.sent(due, time.perf_counter())
            task = asyncio.create_task(self._all(stream, number, due))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _all(self, stream: Stream, number: int, due: float) -> None:
        asked = _asked(stream, number)
        if len(asked) == 1:
            await self._one(stream, *asked[0], due)
        else:
            await asyncio.gather(*(self._one(stream, task, text, due) for task, text in asked))

    async def _one(self, stream: Stream, task: str, text: str, due: float) -> None:
        data = self._message(stream, task, text)
        if stream.ids:  # protobuf merges what is serialised one after the other
            data += service_pb2.ModelInferRequest(id=f"{stream.ids}{next(self._ids)}").SerializeToString()
        self.record.offer(task, due)
        try:
            answer = await self.call(data)
        except grpc.RpcError as error:
            self.record.fail(task, due, f"{error.code().name}: {error.details()}"[:120])
            return
        except (http.HttpError, OSError, EOFError) as error:
            self.record.fail(task, due, f"{type(error).__name__}: {error}"[:120])
            return
        done = time.perf_counter()
        self.record.answer(task, due, done, stream.slo_ms, _receipt(answer) if self.plan.usage else (0, 0))

    def _message(self, stream: Stream, task: str, text: str) -> bytes:
        found = self._messages.get((task, text))
        if found is None:
            slo_ms = stream.slo_ms if stream.ask_slo else 0.0
            if self.plan.protocol == "embeddings":
                found = http.embeddings(self.plan.url, task, text)
            elif self.plan.protocol == "http":
                found = http.message(self.plan.url, task, text, stream.outputs, slo_ms)
            else:
                found = message(
                    task, text, usage=self.plan.usage, slo_ms=slo_ms, outputs=stream.outputs, reads=stream.reads
                )
            self._messages[task, text] = found
        return found

    async def _watch_cpu(self) -> None:
        await asyncio.sleep(self.begin - time.perf_counter())
        before = time.process_time()
        await asyncio.sleep(self.end - time.perf_counter())
        self.record.cpu_s = time.process_time() - before


async def generate(plan: Plan) -> Outcome:
    """Run a plan."""
    if plan.protocol != "grpc":
        async with contextlib.aclosing(http.HttpCalls(plan.url)) as calls:
            sender = Sender(plan, calls)
            await sender.run()
        return summary(sender.record, plan)
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(plan.url, options=options) as channel:
        sender = Sender(plan, channel.unary_unary(METHOD))
        await sender.run()
    return summary(sender.record, plan)


def main() -> None:
    """The first line of stdin names the core to run on, every other one is a plan to answer with an outcome."""
    setup = json.loads(sys.stdin.readline())
    if setup["core"] is not None:
        os.sched_setaffinity(0, {setup["core"]})
    print("{}", flush=True)
    for line in sys.stdin:
        plan = Plan.from_json(json.loads(line))
        gc.collect()
        gc.disable()  # a collection would stop the generator, and look like a pause of the server
        outcome = asyncio.run(generate(plan))
        gc.enable()
        print(json.dumps(asdict(outcome)), flush=True)


if __name__ == "__main__":
    main()
