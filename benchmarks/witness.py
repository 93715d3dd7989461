"""An independent witness: NVIDIA's perf_analyzer and our load generator ask the same server the same, in turn.

One head-only task, 16 tokens: closed loop with 64 clients, and an open loop at half of what that serves: Poisson, the
very same arrivals for both. perf_analyzer with --async: without, its threads wait for answers, send late and count from
then, and its p99 comes out at half.
Both generators run on the same core. Before that the generator's own ceiling: against a model that does nothing, on a
server that has core 0 to itself, what a full core of the generator could send at the cost per request seen there.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from benchmarks.arms import CODE, head_tasks, shared
from benchmarks.compare import against, interleave, ratio, spread, text
from benchmarks.load import Generator, Outcome, Plan, Stream
from benchmarks.load.arrivals import poisson
from benchmarks.repositories import texts_of_length
from benchmarks.serving import backend_processes, pin, serving
from benchmarks.subject import subject

TOKENS, CLIENTS = 16, 64
TIMES = 3.0  # the generator's ceiling against the highest rate measured
AGREE = 0.1
WINDOWS = 3  # perf_analyzer measures at least three in a row, and reports them together


def ceiling(seconds: float) -> Outcome:
    """The generator alone on core 1, everything of the server on core 0."""
    with tempfile.TemporaryDirectory() as folder:
        version = Path(folder, "task0", "1")
        version.mkdir(parents=True)
        shutil.copy(CODE / "identity.py", version / "model.py")
        (version.parent / "config.pbtxt").write_text(
            'name: "task0"\nbackend: "python"\nmax_batch_size: 32\ndynamic_batching { }\n'
            'input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]\n'
            'output [ { name: "SCORES" data_type: TYPE_FP32 dims: [ 2 ] },\n'
            '         { name: "LABEL" data_type: TYPE_STRING dims: [ 1 ] } ]\n',
            encoding="utf-8",
        )
        with serving(Path(folder)) as server, Generator(subject().apart.generator) as generator:
            for process in (psutil.Process(server.pid), *backend_processes(server)):
                pin(process, *subject().apart.models)
            texts = texts_of_length(TOKENS, 256)
            return generator.run(Plan(server.grpc_url, [Stream(["task0"], texts, CLIENTS)], seconds))


def perf_analyzer(url: str, texts: list[str], seconds: float, *load: str) -> dict[str, float]:
    """One measurement of perf_analyzer's: its rate and latencies."""
    with tempfile.TemporaryDirectory() as folder:
        data, report = Path(folder, "data.json"), Path(folder, "report.csv")
        data.write_text(json.dumps({"data": [{"TEXT": [text]} for text in texts]}), encoding="utf-8")
        wanted = [
            "-m",
            "task0",
            "-i",
            "grpc",
            "-u",
            url,
            "--input-data",
            str(data),
            "--shape",
            "TEXT:1",
            "-f",
            str(report),
        ]
        # its windows are taken as they come: the rounds' median says what a stability test would
        window = ["-p", str(int(seconds * 1000)), "-s", "999", "-r", str(WINDOWS), "--percentile", "99"]
        line = [sys.executable, "-m", "fmplex", "perf", "--", *wanted, *window, *load]
        core = subject().apart.generator
        done = subprocess.run(
            line, capture_output=True, text=True, check=False, preexec_fn=lambda: os.sched_setaffinity(0, {core})
        )
        if not report.is_file():
            raise RuntimeError(f"perf_analyzer failed:\n{(done.stdout + done.stderr)[-2000:]}")
        with report.open(newline="", encoding="utf-8") as stream:
            row = next(csv.DictReader(stream))
    return {
        "per_second": float(row["Inferences/Second"]),
        "p50_ms": float(row["p50 latency"]) / 1e3,
        "p99_ms": float(row["p99 latency"]) / 1e3,
    }


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """The ceiling, then both loads."""
    rounds, seconds = (1, 1.0) if quick else (5, 1.5)
    texts = texts_of_length(TOKENS, 256)
    alone = ceiling(seconds)
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        arm = stack.enter_context(shared(head_tasks(1)))
        generator = stack.enter_context(Generator(subject().apart.generator))

        def ours(stream: Stream) -> dict[str, float]:
            outcome = generator.run(Plan(arm.url, [stream], WINDOWS * seconds))
            return {name: getattr(outcome, name) for name in ("per_second", "p50_ms", "p99_ms")}

        def theirs(*load: str) -> Any:
            return lambda _: perf_analyzer(arm.url, texts, seconds, *load)

        saturated = {
            "ours": lambda _: ours(Stream(["task0"], texts, CLIENTS)),
            "perf_analyzer": theirs("--concurrency-range", str(CLIENTS)),
        }
        rows.append(_row(f"closed loop, {CLIENTS} clients", interleave(saturated, rounds)))
        rate = round(rows[0]["ours"]["per_second"]["median"] / 2)
        intervals = Path(stack.enter_context(tempfile.TemporaryDirectory()), "intervals")

        def arrivals(number: int) -> list[float]:
            return poisson(rate, WINDOWS * seconds + 1, number)

        def replayed(number: int) -> dict[str, float]:
            times = [0.0, *arrivals(number)]
            gaps = [round(1e6 * (after - before)) for before, after in pairwise(times)]
            intervals.write_text("".join(f"{gap}\n" for gap in gaps), encoding="utf-8")
            return perf_analyzer(arm.url, texts, seconds, "--request-intervals", str(intervals), "--async")

        half = {
            "ours": lambda number: ours(Stream(["task0"], texts, times=arrivals(number))),
            "perf_analyzer": replayed,
        }
        rows.append(_row(f"Poisson, {rate} requests/s", interleave(half, rounds)))
    highest = rows[0]["ours"]["per_second"]["median"]
    return [*rows, {"point": "ceiling", "ceiling": alone.ceiling, "reached": alone.per_second, "highest": highest}]


def _row(point: str, seen: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    figures = ("per_second", "p50_ms", "p99_ms")
    both = {name: {key: spread([each[key] for each in results]) for key in figures} for name, results in seen.items()}
    ratios = {
        key: ratio([each[key] for each in seen["ours"]], [each[key] for each in seen["perf_analyzer"]])
        for key in figures
    }
    return {"point": point, **both, "ratio": ratios, "rounds": len(seen["ours"])}


def show(rows: list[dict[str, Any]]) -> None:
    """A line each."""
    for row in rows:
        if row["point"] == "ceiling":
            times = row["ceiling"] / row["highest"]
            print(
                f"the generator's ceiling: {row['ceiling']:.0f} requests/s of a core (it reached {row['reached']:.0f} "
                f"against a model that does nothing), {times:.1f} times the {row['highest']:.0f} measured here "
                f"({against(times, TIMES)})"
            )
            continue
        for key, unit in (("per_second", "requests/s"), ("p50_ms", "ms p50"), ("p99_ms", "ms p99")):
            agree = "agree" if abs(row["ratio"][key]["median"] - 1) <= AGREE else "DIFFER"
            print(
                f"{row['point']}: {row['ours'][key]['median']:.0f} against perf_analyzer's "
                f"{row['perf_analyzer'][key]['median']:.0f} {unit}: {text(row['ratio'][key])}, "
                f"{agree} within {AGREE:.0%}"
            )


if __name__ == "__main__":
    show(run())
