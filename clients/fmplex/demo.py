"""`fmplex demo`: serves a repository and asks each of its tasks something, over HTTP and over gRPC."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TypeAlias

import numpy as np
import tritonclient.grpc as grpc_types
import tritonclient.grpc.aio as grpcclient
import tritonclient.http as http_types
import tritonclient.http.aio as httpclient
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tritonclient.utils import InferenceServerException

from fmplex.answers import USAGE, Answer, agree, describe
from fmplex_controller import foreground
from fmplex_controller.options import ServerOptions
from fmplex_controller.server import Server

Client: TypeAlias = grpcclient.InferenceServerClient | httpclient.InferenceServerClient

INPUT = "TEXT"
ANY_QUESTION = "Triton serves many tasks from one foundation model."
QUESTIONS = {
    "embed": "The cat sleeps on the warm windowsill.",
    "sentiment": "A warm, funny film, beautifully acted; I would happily watch it again.",
    "emotion": "I can't believe we finally won, what a night!",
    "question": "How many people live in Iceland?",
    "topic": "Shares of the chip maker rose after it raised its forecast.",
    "intent": "My card was swallowed by the cash machine.",
    "entities": "Ada Lovelace met Charles Babbage in London in 1833.",
    "mentions": "Off to Berlin with Anna to see Radiohead tonight",
    "routing": "The invoice shows the wrong amount and I want my money back.",
}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question to one task, asked over both protocols at once."""

    task: str
    text: str
    http: Answer
    grpc: Answer

    @property
    def agreed(self) -> bool:
        """Whether both protocols gave the same answer."""
        return agree(self.http, self.grpc)


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
    for exchange in exchanges:
        if not exchange.agreed:
            print(f"fmplex: {exchange.task} answers differently over HTTP and gRPC", file=sys.stderr)
    print(f"Ask again:\n  {curl_line(server.http_url, exchanges[-1])}\n", flush=True)
    return all(exchange.agreed for exchange in exchanges) and all(model.ready for model in server.models())


async def ask_every_task(server: Server) -> list[Exchange]:
    """Every question is sent before any answer is awaited, so that tasks meet in a batch."""
    async with (
        grpcclient.InferenceServerClient(server.grpc_url) as grpc,
        httpclient.InferenceServerClient(server.http_url) as http,
    ):
        tasks = await _tasks(grpc, server.control_headers)
        questions = [QUESTIONS.get(task, ANY_QUESTION) for task in tasks]
        asked = [
            _ask(client, types, task, text)
            for task, text in zip(tasks, questions, strict=True)
            for client, types in ((http, http_types), (grpc, grpc_types))
        ]
        answers = await asyncio.gather(*asked)
    return [Exchange(*rest) for rest in zip(tasks, questions, answers[::2], answers[1::2], strict=True)]


async def _tasks(client: grpcclient.InferenceServerClient, headers: dict[str, str]) -> list[str]:
    """The repository's tasks that take one text: ensembles that give a usage receipt."""
    index = await client.get_model_repository_index(headers=headers)
    tasks = []
    for name in sorted(model.name for model in index.models if model.state == "READY"):
        config = (await client.get_model_config(name)).config
        outputs = {output.name for output in config.output}
        if config.platform == "ensemble" and USAGE in outputs and [i.name for i in config.input] == [INPUT]:
            tasks.append(name)
    return tasks


async def _ask(client: Client, types: ModuleType, task: str, text: str) -> Answer:
    tensor = types.InferInput(INPUT, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
    try:
        result = await client.infer(task, [tensor])
    except (InferenceServerException, OSError) as error:
        return Answer(error=str(error))
    response = result.get_response()
    listed = response["outputs"] if isinstance(response, dict) else response.outputs
    names = [output["name"] if isinstance(output, dict) else output.name for output in listed]
    return Answer({name: result.as_numpy(name)[0] for name in names})


def table(exchanges: Sequence[Exchange]) -> Table:
    """One row a task; where both protocols have a number of their own, HTTP's stands above gRPC's."""
    shown = Table("task", "question", "answer", show_lines=True)
    shown.add_column("over", no_wrap=True)
    for title in ("queue\nms", "compute\nms", "items in\nbatch"):
        shown.add_column(title, justify="right", no_wrap=True)
    shown.columns[0].no_wrap = True
    for exchange in exchanges:
        answers = (exchange.http, exchange.grpc)
        told = [describe(answer, exchange.text) for answer in answers]
        receipts = [receipt_cells(answer) for answer in answers]
        cells = ["\n".join(pair) for pair in zip(*receipts, strict=True)]
        answer = told[0] if exchange.agreed else f"HTTP: {told[0]}\ngRPC: {told[1]}"
        # Text: what a model says is never markup.
        shown.add_row(*map(Text, (exchange.task, exchange.text, answer, "HTTP\ngRPC", *cells)))
    return shown


def receipt_cells(answer: Answer) -> tuple[str, str, str]:
    """Queue and compute time in milliseconds, and the items that shared the pass."""
    if answer.usage is None:
        return ("-", "-", "-")
    queue_us, compute_us, items = answer.usage
    return (f"{queue_us / 1e3:.1f}", f"{compute_us / 1e3:.1f}", str(items))


def curl_line(url: str, exchange: Exchange) -> str:
    """A command that asks the same again."""
    tensor = {"name": INPUT, "shape": [1, 1], "datatype": "BYTES", "data": [exchange.text]}
    body = shlex.quote(json.dumps({"inputs": [tensor]}))
    return f"curl -s http://{url}/v2/models/{exchange.task}/infer -d {body}"
