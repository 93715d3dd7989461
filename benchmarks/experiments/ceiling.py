"""Ceiling: requests per second and core time per request, where the passes over the backbone take no time.

* instant: a task on a backbone whose runtime answers at once (`benchmarks.harness.instant`): the request path alone;
* no forward: a head-only task on a text encoder without its forward: tokenising and the head on top of that;
* kept: a task on that backbone too, whose answers are kept (`cache`): all are, by the end of the warm-up;
* echo: a plain Python-backend model that answers at once, with dynamic batching; unbatched: without it; ensemble: the
  batched one as the one step of an ensemble, as every task is one.

All arms ask for the same outputs of one text of 16 tokens, closed loop, over gRPC and HTTP, on one server, whose
other models are idle meanwhile; server, models and client all on the same cores. Core time is that of tritonserver, of
the model's process and of the client. `a call` is how many requests Triton hands over in one call of `execute`.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from benchmarks.harness import instant
from benchmarks.harness.compare import interleave, ratio, spread, text
from benchmarks.harness.repositories import model_directory, texts_of_length
from benchmarks.harness.serving import pin, serving
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Plan, Stream
from testing import repositories
from testing.servers import Serving

TOKENS = 16
CLIENTS = (1, 16, 64)
# Of each arm the model that is asked, and the one whose process answers.
ARMS = {
    "instant": ("instant-task", "instant"),
    "no forward": ("no-forward-task", "no-forward"),
    "kept": ("kept-task", "no-forward"),
    "echo": ("echo", "echo"),
    "echo, unbatched": ("unbatched", "unbatched"),
    "echo, ensemble": ("ensemble", "echo"),
}
CODE = Path(__file__).parents[1] / "harness" / "echo_model.py"
TENSORS = [
    "max_batch_size: 32",
    'input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]',
    f'output [ {{ name: "SCORES" data_type: TYPE_FP32 dims: [ {instant.LABELS} ] }},',
    '         { name: "LABEL" data_type: TYPE_STRING dims: [ 1 ] } ]',
]


@contextlib.contextmanager
def served() -> Iterator[Serving]:
    """A server of all arms on all cores."""
    with tempfile.TemporaryDirectory() as folder:
        variables = instant.install(Path(folder, "families"))
        repository = Path(folder, "models")
        for family in ("instant", "no-forward"):
            repositories.write_backbone(
                repository, family, model=subject().model, kind="KIND_CPU", family=family, threads="1", dtype="float32"
            )
            _write_task(repository, family, family)
        _write_task(repository, "kept", "no-forward", 1, cache="true")
        _write_echo(repository, "echo", ["dynamic_batching { }"])
        _write_echo(repository, "unbatched", [])
        maps = ['input_map { key: "TEXT" value: "TEXT" }']
        maps += [f'output_map {{ key: "{name}" value: "{name}" }}' for name in ("SCORES", "LABEL")]
        step = f'model_name: "echo" model_version: -1 {" ".join(maps)}'
        _write(repository, "ensemble", ['platform: "ensemble"', f"ensemble_scheduling {{ step [ {{ {step} }} ] }}"])
        with serving(repository, **variables) as server:
            for process in (server.process, *server.stubs().values()):
                pin(process, *subject().spread.models)
            yield server


def _write_task(repository: Path, name: str, backbone: str, vfm: int = 0, **parameters: str) -> None:
    task = repositories.Task(
        f"{name}-task",
        vfm,
        labels=instant.LABELS,
        backbone=backbone,
        model=model_directory(),
        hidden=subject().hidden,
        parameters=parameters,
    )
    repositories.write_task(repository, task)


def _write(repository: Path, name: str, lines: list[str]) -> Path:
    version = repository / name / "1"
    version.mkdir(parents=True)
    config = "\n".join([f'name: "{name}"', *TENSORS, *lines, ""])
    (repository / name / "config.pbtxt").write_text(config, encoding="utf-8")
    return version


def _write_echo(repository: Path, name: str, lines: list[str]) -> None:
    group = "instance_group [ { kind: KIND_CPU count: 1 } ]"
    shutil.copy(CODE, _write(repository, name, ['backend: "python"', group, *lines]) / "model.py")


def measure(
    server: Serving, generator: Generator, arm: str, protocol: Literal["grpc", "http"], clients: int, seconds: float
) -> dict[str, float]:
    """One round: the rate, the core time of a request by process in microseconds, and the requests of a call."""
    task, model = ARMS[arm]
    processes = {"server": server.process, "model": server.stub(model)}
    used: dict[str, float] = {}

    def now() -> dict[str, float]:
        seconds_of = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
        return seconds_of | dict(zip(("requests", "calls"), _calls(server, model), strict=True))

    def watch() -> None:
        before = now()
        time.sleep(seconds)
        used.update({name: value - before[name] for name, value in now().items()})

    url = server.grpc_url if protocol == "grpc" else server.http_url
    streams = [Stream([task], texts_of_length(TOKENS, 512), clients)]
    outcome = generator.run(Plan(url, streams, seconds, warmup=0.5, protocol=protocol), beside=watch)
    if outcome.failures:
        raise RuntimeError(f"{arm}: {outcome.failures} requests failed: {outcome.errors}")
    return {
        "per_second": outcome.per_second,
        "p50_ms": outcome.p50_ms,
        "a_call": used["requests"] / max(1.0, used["calls"]),
        "client_us": outcome.cpu * seconds / outcome.answered * 1e6,
        **{f"{name}_us": used[name] / used["requests"] * 1e6 for name in processes},
    }


def _calls(server: Serving, model: str) -> tuple[float, float]:
    """Requests so far, and calls of `execute` for them."""
    with server.client() as client:
        statistics_of = client.raw.get_inference_statistics(model, client_timeout=10).model_stats[0]
    return float(statistics_of.inference_count), float(statistics_of.execution_count)


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """A row per protocol and number of clients."""
    rounds, seconds = (1, 1.0) if quick else (3, 1.0)
    rows = []
    with served() as server, Generator() as generator:
        for protocol in ("grpc", "http"):
            for clients in CLIENTS:

                def round_of(arm: str, protocol: Any = protocol, clients: int = clients) -> Any:
                    return lambda _: measure(server, generator, arm, protocol, clients, seconds)

                seen = interleave({arm: round_of(arm) for arm in ARMS}, rounds)
                rows.append(_row(protocol, clients, seen))
    return rows


def _row(protocol: str, clients: int, seen: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    rates = {arm: [each["per_second"] for each in rounds] for arm, rounds in seen.items()}
    return {
        "protocol": protocol,
        "clients": clients,
        "arms": {
            arm: {figure: statistics.median(each[figure] for each in rounds) for figure in rounds[0]}
            | {"per_second": spread(rates[arm])}
            for arm, rounds in seen.items()
        },
        "of_echo": ratio(rates["instant"], rates["echo, ensemble"]),
        "kept_of_instant": ratio(rates["kept"], rates["instant"]),
        "cores": str(subject().spread),
        "rounds": len(rates["instant"]),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A line per arm, under one for each protocol and number of clients."""
    for row in rows:
        print(
            f"{row['protocol']}, {row['clients']} clients: instant serves {text(row['of_echo'], '.2f')} of the "
            f"ensemble of an echo, kept answers {text(row['kept_of_instant'], '.2f')} of instant"
        )
        for arm, each in row["arms"].items():
            served_us = each["server_us"] + each["model_us"]
            print(
                f"    {arm:16} {each['per_second']['median']:6.0f}/s, p50 {each['p50_ms']:5.1f} ms; core time of a "
                f"request {served_us:4.0f} us (server {each['server_us']:.0f}, model {each['model_us']:.0f}) and the "
                f"client's {each['client_us']:.0f}; {each['a_call']:.1f} a call"
            )


if __name__ == "__main__":
    show(run())
