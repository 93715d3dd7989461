"""`fmplex demo`: serves a repository and asks each of its tasks something, over HTTP and over gRPC."""

from __future__ import annotations

import asyncio
import json
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import tritonclient.grpc.aio as grpcclient
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tritonclient.utils import np_to_triton_dtype

from fmplex.cli.answers import Answer, agree, describe, result_line, text_in
from fmplex.client.aio import AsyncClient
from fmplex.client.wire import Interface, array_of
from fmplex_backend.decoders.results import strings
from fmplex_backend.errors import FmplexError
from fmplex_backend.families import input_named
from fmplex_backend.interface import USAGE
from fmplex_controller.server import foreground
from fmplex_controller.server.options import ServerOptions
from fmplex_controller.server.process import Server

QUESTIONS: dict[str, Any] = {
    "load-kind": [round(30 + 12 * math.sin(step / 23) + step % 7, 1) for step in range(288)],
    "rate-forecast": [round(30 + 12 * math.sin(step / 23) + step % 7, 1) for step in range(288)],
    "rate-anomaly": [round(30 + 12 * math.sin(step / 23) + step % 7, 1) for step in range(286)] + [95.0, 27.5],
    "embed": "The cat sleeps on the warm windowsill.",
    "sentiment": "A warm, funny film, beautifully acted; I would happily watch it again.",
    "emotion": "I can't believe we finally won, what a night!",
    "question": "How many people live in Iceland?",
    "topic": "Shares of the chip maker rose after it raised its forecast.",
    "intent": "My card was swallowed by the cash machine.",
    "entities": "Ada Lovelace met Charles Babbage in London in 1833.",
    "mentions": "Flying to London with Taylor Swift tomorrow",
    "routing": "The invoice shows the wrong amount and I want my money back.",
    "assistant": "Why is the sky blue?",
    "headline": "Engineers in Reykjavik have switched on a plant that turns carbon dioxide from the air into stone.",
}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question to one task, asked over both protocols at once; over gRPC alone where a task answers in parts."""

    task: Interface
    question: Any  # an item
    http: Answer | None
    grpc: Answer

    @property
    def agreed(self) -> bool:
        """Whether the task has answered, and over both protocols alike."""
        return not self.grpc.error if self.http is None else agree(self.http, self.grpc)


def run(options: ServerOptions, once: bool) -> int:
    """Serve and ask; the exit status of the command."""
    server = Server(replace(options, extra=("--log-info=false", *options.extra)))
    failed = False

    def ask() -> None:
        nonlocal failed
        try:
            failed = not _ask_and_show(server)
        except Exception:
            if not server.stopping:  # else somebody stopped it while it was being asked
                raise
        if once or failed:
            server.terminate()
        elif not server.stopping:
            print(f"Serving HTTP at {server.http_url} and gRPC at {server.grpc_url}; Ctrl-C stops.", flush=True)

    print(f"fmplex: loading {options.repository}", file=sys.stderr, flush=True)
    status = foreground.serve(server, when_ready=ask)
    return 1 if failed else status


def _ask_and_show(server: Server) -> bool:
    """Whether every task was served and answered alike over both protocols."""
    exchanges = asyncio.run(ask_every_task(server))
    if not exchanges:
        print(f"fmplex: no task in {server.options.repository} can be asked", file=sys.stderr)
        return False
    console = Console()
    console.print(table(exchanges))
    if streaming := [exchange.task for exchange in exchanges if exchange.task.streams]:
        asyncio.run(show_stream(server, streaming[0], console))
    for exchange in exchanges:
        if exchange.http is not None and not exchange.agreed:
            print(f"fmplex: {exchange.task.name} answers differently over HTTP and gRPC", file=sys.stderr)
    if plain := [exchange for exchange in exchanges if _fits_json(exchange)]:
        print(f"Ask again:\n  {curl_line(server.http_url, plain[-1])}\n", flush=True)
    return all(exchange.agreed for exchange in exchanges) and all(model.ready for model in server.models())


async def ask_every_task(server: Server) -> list[Exchange]:
    """Every question is sent before any answer is awaited, so that tasks meet in a batch."""
    tasks = await _tasks(server)
    async with (
        AsyncClient(server.grpc_url, retries=0) as grpc,
        AsyncClient(f"http://{server.http_url}", retries=0) as http,
    ):
        return list(await asyncio.gather(*(_exchange(task, http, grpc) for task in tasks)))


async def _tasks(server: Server) -> list[Interface]:
    """The repository's tasks with one input that some family has: ensembles that give a usage receipt."""
    tasks = []
    async with grpcclient.InferenceServerClient(server.grpc_url) as client:
        for name in sorted(model.name for model in server.models() if model.ready):
            config = (await client.get_model_config(name, as_json=True))["config"]
            outputs = [output["name"] for output in config.get("output", [])]
            known = [input_named(each["name"]) is not None for each in config.get("input", [])]
            if config.get("platform") == "ensemble" and USAGE in outputs and known == [True]:
                tasks.append(Interface.of(config))
    return tasks


async def _exchange(task: Interface, http: AsyncClient, grpc: AsyncClient) -> Exchange:
    question = question_for(task)
    if task.streams:
        return Exchange(task, question, None, await _ask(grpc, task, question))
    return Exchange(task, question, *await asyncio.gather(_ask(http, task, question), _ask(grpc, task, question)))


async def show_stream(server: Server, task: Interface, console: Console) -> None:
    """Ask a task once more, and show its answer as it comes."""
    question, reads = question_for(task), input_named(task.takes)
    assert reads is not None
    console.print(Text(f"{task.name} again, as it comes: {reads.show(question)}"))
    async with AsyncClient(server.grpc_url, retries=0) as client:
        async for part in client.stream(task.name, question):
            text = text_in(part)
            console.print(Text(f"{result_line(part)}\n" if text is None else text), end="", soft_wrap=True)
            console.file.flush()
    console.print("\n")


def question_for(task: Interface) -> Any:
    """An item for a task to answer."""
    reads = input_named(task.takes)
    assert reads is not None
    question = QUESTIONS.get(task.name)
    return question if reads.is_item(question) else reads.probe(task.size)


async def _ask(client: AsyncClient, task: Interface, question: Any) -> Answer:
    try:
        (outputs,) = await client.outputs(task.name, [question], usage=True)
    except FmplexError as error:
        return Answer(error=str(error))
    return Answer(outputs)


def table(exchanges: Sequence[Exchange]) -> Table:
    """One row a task; where both protocols have a number of their own, HTTP's stands above gRPC's."""
    shown = Table("task", "question", "answer", show_lines=True)
    shown.add_column("over", no_wrap=True)
    for title in ("queue\nms", "compute\nms", "items in\nbatch"):
        shown.add_column(title, justify="right", no_wrap=True)
    shown.columns[0].no_wrap = True
    for exchange in exchanges:
        answers = {"HTTP": exchange.http, "gRPC": exchange.grpc}
        asked = {over: answer for over, answer in answers.items() if answer is not None}
        told = {over: describe(answer, exchange.task, exchange.question) for over, answer in asked.items()}
        same = exchange.agreed or len(told) == 1
        answer = told["gRPC"] if same else "\n".join(f"{over}: {line}" for over, line in told.items())
        cells = ["\n".join(column) for column in zip(*map(receipt_cells, asked.values()), strict=True)]
        # Text: what a model says is never markup.
        shown.add_row(*map(Text, (exchange.task.name, _question(exchange), answer, "\n".join(asked), *cells)))
    return shown


def _question(exchange: Exchange) -> str:
    reads = input_named(exchange.task.takes)
    assert reads is not None
    return reads.show(exchange.question)


def receipt_cells(answer: Answer) -> tuple[str, str, str]:
    """Queue and compute time in milliseconds, and the items that shared the pass."""
    if answer.usage is None:
        return ("-", "-", "-")
    queue_us, compute_us, items = answer.usage
    return (f"{queue_us / 1e3:.1f}", f"{compute_us / 1e3:.1f}", str(items))


def _fits_json(exchange: Exchange) -> bool:
    """Whether its question has no bytes but those of texts: a picture's are no JSON."""
    array = array_of(exchange.task.takes, [exchange.question])
    try:
        return bool(array.dtype != object or strings(array))
    except UnicodeDecodeError:
        return False


def curl_line(url: str, exchange: Exchange) -> str:
    """A command that asks the same again."""
    task = exchange.task
    array = array_of(task.takes, [exchange.question])
    data = strings(array) if array.dtype == object else array.ravel().tolist()
    if task.streams:
        path, body = "generate_stream", {task.takes: data[0] if len(data) == 1 else data}
    else:
        tensor = {"name": task.takes, "shape": array.shape, "datatype": np_to_triton_dtype(array.dtype), "data": data}
        path, body = "infer", {"inputs": [tensor]}
    return f"curl -s http://{url}/v2/models/{task.name}/{path} -d {shlex.quote(json.dumps(body))}"
