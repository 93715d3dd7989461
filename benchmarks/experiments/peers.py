"""Peers: one embedding task beside infinity and LitServe with sentence-transformers, as many texts as they serve.

The same model, 32 clients in a closed loop, one text a request, everything on the same cores. The peers speak OpenAI's
embeddings API over HTTP, vectors in base64; FMplex is asked over HTTP too, and over gRPC. Each has an environment of
its own with what its newest release takes, pinned in `benchmarks/peers`, and is tuned first: setting by setting (dtype,
threads, rows of a batch, how long one waits, workers, threads of the tokenizer) the one that serves more texts of 16
and of 64 tokens is kept. Of FMplex dtype, threads and `batch_efficiency` are tuned alike. The bests then take turns.
Each of LitServe's workers has a copy of the model. While one takes its turn, the processes of the others are stopped:
LitServe's poll for work when there is none, which would slow whoever is measured.

Before that, each must answer a few texts with FMplex's vectors, up to their length and the rounding of bfloat16.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.harness.compare import against, interleave, pace, ratio, spread, text
from benchmarks.harness.peers import NAME, PEERS, NotInstalled, Peer, Settings, embedding
from benchmarks.harness.repositories import BACKBONE, model_directory, texts_of_length, write_backbone
from benchmarks.harness.serving import pin, serving
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Outcome, Plan, Stream
from benchmarks.load.plan import Protocol
from testing import repositories
from testing.clients import Question

CLIENTS = 32
TOKENS = (16, 64)
TASK = "embed"
OWN = "fmplex"
CHOICES = {"dtype": ("bfloat16", "float32"), "threads": (2, 1), "batch_efficiency": ("0.95", "1")}
SAMPLE = ("a warm, funny film", "the bank raised its rates again", "who won the match last night?")
LEAST_COSINE = 0.999  # bfloat16 gives 0.9999 and more
TRIED_S = 0.8  # a setting, with texts of each length


@dataclass(frozen=True, slots=True)
class Server:
    """A running server; `urls` by the protocol it is asked over, `vector` asks it for one text's."""

    urls: Mapping[Protocol, str]
    model: str
    vector: Callable[[str], Any]
    process: psutil.Process  # the first one: others are its children

    def stop(self) -> None:
        """Let it use no core until `go_on`."""
        for each in (self.process, *self.process.children(recursive=True)):
            each.suspend()

    def go_on(self) -> None:
        for each in (self.process, *self.process.children(recursive=True)):
            each.resume()


@dataclass
class Tuned:
    """A server with the settings that serve most."""

    settings: dict[str, Any]
    tried: list[dict[str, Any]] = field(default_factory=list)
    score: float = 0.0


@contextlib.contextmanager
def own(settings: Settings) -> Iterator[Server]:
    """FMplex with the one task."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        write_backbone(repository, **{name: str(value) for name, value in settings.items()})
        task = repositories.Task(TASK, 0, "embedding", backbone=BACKBONE, model=model_directory())
        repositories.write_task(repository, task)
        with serving(repository) as server, server.client() as client:
            for process in (server.process, server.stub()):
                pin(process, *subject().spread.models)

            def vector(sentence: str) -> Any:
                return client.ask(Question(TASK, (sentence,))).good()["EMBEDDING"][0]

            yield Server({"http": server.http_url, "grpc": server.grpc_url}, TASK, vector, server.process)


@contextlib.contextmanager
def other(peer: Peer, settings: Settings) -> Iterator[Server]:
    """A peer."""
    with peer.running(settings) as (host, process):
        yield Server({"embeddings": host}, NAME, lambda sentence: embedding(host, sentence), process)


def rate(generator: Generator, server: Server, protocol: Protocol, texts: list[str], seconds: float) -> Outcome:
    """A round."""
    stream = Stream([server.model], texts, CLIENTS, outputs=["EMBEDDING"])
    outcome = generator.run(Plan(server.urls[protocol], [stream], seconds, warmup=0.4, protocol=protocol))
    if outcome.failures:
        raise RuntimeError(f"{protocol}: {outcome.failures} requests failed: {outcome.errors}")
    return outcome


def tune(
    start: Callable[[Settings], contextlib.AbstractContextManager[Server]],
    choices: Mapping[str, tuple[Any, ...]],
    generator: Generator,
    texts: Mapping[int, list[str]],
) -> Tuned:
    """Setting by setting, keep what serves most: the geometric mean of the rates of both lengths."""
    best = Tuned({name: values[0] for name, values in choices.items()})

    def attempt(settings: dict[str, Any]) -> None:
        with start(settings) as server:
            protocol = next(iter(server.urls))
            for own_texts in texts.values():
                rate(generator, server, protocol, own_texts, 0.3)
            rates = [rate(generator, server, protocol, each, TRIED_S).per_second for each in texts.values()]
        score = math.prod(rates) ** (1 / len(rates))
        best.tried.append({**settings, "per_second": rates})
        if score > best.score:
            best.settings, best.score = settings, score

    attempt(best.settings)
    for name, values in choices.items():
        for value in values[1:]:
            attempt(best.settings | {name: value})
    return best


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row per length, and one per peer that is not measured."""
    rounds, seconds, _ = pace(quick=quick)
    texts = {tokens: texts_of_length(tokens, 512) for tokens in TOKENS}
    starts: dict[str, Any] = {OWN: own}
    starts |= {peer.name: lambda settings, peer=peer: other(peer, settings) for peer in PEERS}
    choices: dict[str, Mapping[str, tuple[Any, ...]]] = {OWN: CHOICES} | {peer.name: peer.choices for peer in PEERS}
    if quick:
        choices = {name: {key: values[:1] for key, values in every.items()} for name, every in choices.items()}
    rows: list[dict[str, Any]] = []
    with Generator() as generator, contextlib.ExitStack() as stack:
        tuned: dict[str, Tuned] = {}
        for name, start in starts.items():
            try:
                tuned[name] = tune(start, choices[name], generator, texts)
            except NotInstalled as error:
                rows.append({"peer": name, "problem": str(error)})
        servers = {name: stack.enter_context(starts[name](each.settings)) for name, each in tuned.items()}
        check_alike(servers)
        for server in servers.values():
            server.stop()
            stack.callback(server.go_on)  # so that it can be ended
        rows += [_row(tokens, servers, tuned, generator, texts[tokens], rounds, seconds) for tokens in TOKENS]
    return rows


def check_alike(servers: Mapping[str, Server]) -> None:
    """Raise RuntimeError where a server's vectors are not ours."""
    for sentence in SAMPLE:
        ours = np.asarray(servers[OWN].vector(sentence))
        for name, server in servers.items():
            vector = np.asarray(server.vector(sentence))
            cosine = float(ours @ vector / np.linalg.norm(ours) / np.linalg.norm(vector))
            if cosine < LEAST_COSINE:
                raise RuntimeError(f"{name} answers {sentence!r} with another vector than {OWN}: cosine {cosine:.4f}")


def in_turn(server: Server, measure: Callable[[], Outcome]) -> Outcome:
    """Measure a server that is stopped before and after."""
    server.go_on()
    try:
        return measure()
    finally:
        server.stop()


def _row(
    tokens: int,
    servers: Mapping[str, Server],
    tuned: Mapping[str, Tuned],
    generator: Generator,
    texts: list[str],
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    arms: dict[str, Any] = {}
    for name, server in servers.items():
        for protocol in server.urls:
            label = f"{name}, gRPC" if protocol == "grpc" else name
            arms[label] = lambda _, server=server, protocol=protocol: in_turn(
                server, lambda: rate(generator, server, protocol, texts, seconds)
            )
    seen = interleave(arms, rounds)
    rates = {name: [each.per_second for each in outcomes] for name, outcomes in seen.items()}
    return {
        "tokens": tokens,
        "per_second": {name: spread(each) for name, each in rates.items()},
        "p99_ms": {name: spread([each.p99_ms for each in outcomes]) for name, outcomes in seen.items()},
        "ahead": {name: ratio(rates[OWN], rates[name]) for name in servers if name != OWN},
        "settings": {name: each.settings for name, each in tuned.items()},
        "tried": {name: each.tried for name, each in tuned.items()},
        "ceiling": max(each.ceiling for outcomes in seen.values() for each in outcomes),
        "cores": str(subject().spread),
        "rounds": rounds,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A line per length, one for the settings, and one per peer that was not measured."""
    for row in rows:
        if "problem" in row:
            print(f"{row['peer']}: NOT MEASURED, its environment cannot be installed: {row['problem']}")
            continue
        won = ", ".join(
            f"{text(value, '.2f')} times {name} ({against(value['median'], 1.0)})"
            for name, value in row["ahead"].items()
        )
        rates = ", ".join(f"{name} {value['median']:.0f}" for name, value in row["per_second"].items())
        waits = ", ".join(f"{name} {value['median']:.0f}" for name, value in row["p99_ms"].items())
        print(f"{row['tokens']} tokens, {CLIENTS} clients: {won}; texts/s {rates}; p99 ms {waits}")
    for name, settings in next((row["settings"] for row in rows if "settings" in row), {}).items():
        print(f"    {name}: {', '.join(f'{key} {value}' for key, value in settings.items())}")


if __name__ == "__main__":
    show(run())
