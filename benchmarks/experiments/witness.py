"""Cross-check: NVIDIA's perf_analyzer and our load generator measure the same load on the same server, in turn.

One head-only task, 16 tokens: closed loop with 64 clients, and an open loop at half of that rate, with the same Poisson
arrivals for both. perf_analyzer runs with --async: without it, its threads wait for answers, send late and measure from
when they sent, which halves its p99. Both generators run on the same core. First, the generator's own ceiling: it is
run against a model that does nothing, on a server that has core 0 to itself, and the rate is extrapolated to a full
core.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.harness.arms import CODE, head_tasks, shared
from benchmarks.harness.compare import against, interleave, ratio, spread, text
from benchmarks.harness.repositories import texts_of_length
from benchmarks.harness.serving import pin, serving
from benchmarks.harness.subject import subject
from benchmarks.load import Generator, Outcome, Plan, Stream
from benchmarks.load.arrivals import poisson

TOKENS, CLIENTS = 16, 64
TIMES = 3.0  # the generator's ceiling against the highest rate measured
AGREE = 0.1
FIGURES = ("per_second", "p50_ms", "p99_ms")
WINDOWS = 3  # perf_analyzer measures at least three in a row, and reports them together


def ceiling(seconds: float) -> Outcome:
    """The generator on core 1, against a model that does nothing, with all of the server on core 0."""
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
            for process in (server.process, *server.stubs().values()):
                pin(process, *subject().apart.models)
            texts = texts_of_length(TOKENS, 256)
            return generator.run(Plan(server.grpc_url, [Stream(["task0"], texts, CLIENTS)], seconds))


def perf_analyzer(url: str, texts: list[str], seconds: float, *load: str) -> dict[str, float]:
    """One run of perf_analyzer: its rate and latencies."""
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
        # accept the first windows: the median of the rounds takes the place of its stability test
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


@dataclass
class Both:
    """The two generators on one server."""

    url: str
    generator: Generator
    texts: list[str]
    seconds: float  # of a window
    intervals: Path  # a file for the open loop's gaps

    def closed_loop(self) -> dict[str, Any]:
        """CLIENTS clients each."""
        return {
            "ours": lambda _: self._ours(Stream(["task0"], self.texts, CLIENTS)),
            "perf_analyzer": lambda _: self._theirs("--concurrency-range", str(CLIENTS)),
        }

    def open_loop(self, rate: int) -> dict[str, Any]:
        """The same Poisson arrivals for both, others in each round."""

        def arrivals(number: int) -> list[float]:
            return poisson(rate, WINDOWS * self.seconds + 1, number)

        def theirs(number: int) -> dict[str, float]:
            gaps = [round(1e6 * (after - before)) for before, after in pairwise([0.0, *arrivals(number)])]
            self.intervals.write_text("".join(f"{gap}\n" for gap in gaps), encoding="utf-8")
            return self._theirs("--request-intervals", str(self.intervals), "--async")

        return {
            "ours": lambda number: self._ours(Stream(["task0"], self.texts, times=arrivals(number))),
            "perf_analyzer": theirs,
        }

    def _ours(self, stream: Stream) -> dict[str, float]:
        outcome = self.generator.run(Plan(self.url, [stream], WINDOWS * self.seconds))
        return {name: getattr(outcome, name) for name in FIGURES}

    def _theirs(self, *load: str) -> dict[str, float]:
        return perf_analyzer(self.url, self.texts, self.seconds, *load)


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """The ceiling, then rows of both loads."""
    rounds, seconds = (1, 1.0) if quick else (5, 1.5)
    texts = texts_of_length(TOKENS, 256)
    alone = ceiling(seconds)
    with (
        shared(head_tasks(1)) as arm,
        Generator(subject().apart.generator) as generator,
        tempfile.TemporaryDirectory() as folder,
    ):
        both = Both(arm.url, generator, texts, seconds, Path(folder, "intervals"))
        saturated = _row(f"closed loop, {CLIENTS} clients", interleave(both.closed_loop(), rounds))
        highest = saturated["ours"]["per_second"]["median"]
        rate = round(highest / 2)
        half = _row(f"Poisson, {rate} requests/s", interleave(both.open_loop(rate), rounds))
    limit = {"point": "ceiling", "ceiling": alone.ceiling, "reached": alone.per_second, "highest": highest}
    return [saturated, half, limit]


def _row(point: str, seen: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    spreads = {
        name: {key: spread([each[key] for each in results]) for key in FIGURES} for name, results in seen.items()
    }
    ratios = {
        key: ratio([each[key] for each in seen["ours"]], [each[key] for each in seen["perf_analyzer"]])
        for key in FIGURES
    }
    return {"point": point, **spreads, "ratio": ratios, "rounds": len(seen["ours"])}


def show(rows: list[dict[str, Any]]) -> None:
    """Lines of each load, then the ceiling."""
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
