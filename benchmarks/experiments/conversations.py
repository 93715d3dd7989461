"""Conversations: ten minutes of a real language-model trace at 80% of capacity.

The Azure LLM inference traces of 2023, conversation and code, each for two LoRA tasks on SmolLM2-135M-Instruct through
the real server: their arrivals thinned so that the mean rate is 80% of what the server takes with 32 clients, prompts a
sixteenth and answers an eighth as long as theirs (at most 512 and 64 tokens). No request may be lost, all blocks for
keys and values must be free at the end, and the backbone's memory must be flat: the median of the last quarter against
that of the second. Needs `--data`, a folder with azure_llm_2023/, and is run only where it is named.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.harness.compare import against
from benchmarks.harness.language_model import BACKBONE, served, texts, write_adapters
from benchmarks.harness.subject import subject
from benchmarks.load.streams import Load, Prompt, StreamPlan, Streams, Tally, percentile
from benchmarks.load.traces import Arrival, read_trace, replay
from testing.servers import Serving

FILES = {
    "conversation": "azure_llm_2023/AzureLLMInferenceTrace_conv.csv",
    "code": "azure_llm_2023/AzureLLMInferenceTrace_code.csv",
}
TASKS_EACH, CLIENTS, LOAD, FLAT = 2, 32, 0.8, 1.02
SHORTER, MOST = (16, 8), (512, 64)  # prompts and answers
EVERY_S = 5.0  # between two readings of the memory
KINDS = 256  # different prompts of each length


def sizes(arrival: Arrival) -> tuple[int, int]:
    """Tokens of its prompt and of its answer here."""
    prompt, answer = (
        max(1, min(most, whole // part))
        for whole, part, most in zip((arrival.tokens, arrival.answer), SHORTER, MOST, strict=True)
    )
    return max(4, prompt), answer


def prompts(part: list[Arrival], seed: int) -> list[Prompt]:
    """What a part of a trace asks."""
    wanted = [sizes(arrival) for arrival in part]
    words = texts([length for length, _ in wanted], seed)
    return [Prompt(word, tokens, arrival.time) for word, (_, tokens), arrival in zip(words, wanted, part, strict=True)]


def loads(made: dict[str, list[Prompt]], *, clients: int = 0) -> list[Load]:
    """Each trace over its tasks in turn."""
    return [
        Load(f"{name}{number}", own[number::TASKS_EACH], clients)
        for name, own in made.items()
        for number in range(TASKS_EACH)
    ]


def run(*, quick: bool = False, data: Path) -> list[dict[str, Any]]:
    """One row."""
    seconds = 40.0 if quick else 600.0
    traces = {name: read_trace(data / file) for name, file in FILES.items()}
    names = [f"{name}{number}" for name in FILES for number in range(TASKS_EACH)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        adapters: dict[str, Path | None] = dict(zip(names, write_adapters(folder, len(names)), strict=True))
        server = stack.enter_context(served(adapters))
        streams = stack.enter_context(Streams(subject().apart.generator))
        capacity = _capacity(server, streams, traces, 10.0 if quick else 30.0)
        rate = LOAD * capacity / len(FILES)
        made = {name: prompts(replay(trace, rate, seconds), seed) for seed, (name, trace) in enumerate(traces.items())}
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(streams.run, StreamPlan(server.grpc_url, loads(made), seconds))
            memory = []
            while not running.done():
                memory.append(server.stub(BACKBONE).memory_info().rss / 2**20)
                time.sleep(EVERY_S)
            tallies = running.result()
        time.sleep(2.0)  # metrics are published once a second
        return [_row(tallies, memory, server, capacity, seconds)]


def _capacity(server: Serving, streams: Streams, traces: dict[str, list[Arrival]], seconds: float) -> float:
    """Requests per second with so many clients, as many of one trace as of the other."""
    made = {name: prompts(trace[:KINDS], 90 + seed) for seed, (name, trace) in enumerate(traces.items())}
    clients = CLIENTS // (TASKS_EACH * len(FILES))
    tallies = streams.run(StreamPlan(server.grpc_url, loads(made, clients=clients), seconds, warmup=3.0))
    by_trace = [sum(tallies[f"{name}{number}"].answered for number in range(TASKS_EACH)) for name in FILES]
    # Backlogged tasks have equal shares of the backbone's seconds: this is what a request of each trace takes of them.
    return len(FILES) / sum(seconds / len(FILES) / count for count in by_trace)


def _row(
    tallies: dict[str, Tally], memory: list[float], server: Serving, capacity: float, seconds: float
) -> dict[str, Any]:
    metrics = server.metrics()
    blocks, free = (metrics.get((f"fmplex_backbone_kv_blocks{kind}", "", "")) for kind in ("", "_free"))
    quarter = max(1, len(memory) // 4)
    every = list(tallies.values())
    first = [each for tally in every for each in tally.first_s]
    gaps = [each for tally in every for each in tally.gaps_s]
    return {
        "seconds": seconds,
        "capacity": capacity,
        "requests": sum(tally.requests for tally in every),
        "answered": sum(tally.answered for tally in every),
        "errors": [error for tally in every for error in tally.errors][:5],
        "tokens": sum(tally.tokens + tally.prompt_tokens for tally in every),
        "first_ms": {str(percent): 1e3 * percentile(first, percent) for percent in (50, 99)},
        "gap_ms": {str(percent): 1e3 * percentile(gaps, percent) for percent in (50, 99)},
        "kv_blocks": blocks,
        "kv_blocks_free": free,
        "mib": {
            "second quarter": statistics.median(memory[quarter : 2 * quarter] or memory),
            "last quarter": statistics.median(memory[-quarter:]),
            "most": max(memory),
        },
        "cores": str(subject().apart),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A few lines."""
    for row in rows:
        lost = row["requests"] - row["answered"]
        growth = row["mib"]["last quarter"] / row["mib"]["second quarter"]
        blocks = "not told by this backbone"
        if row["kv_blocks"] is not None:
            blocks = f"{row['kv_blocks_free']:.0f} of {row['kv_blocks']:.0f}"
        print(
            f"{row['seconds']:.0f} s of the trace at {LOAD:.0%} of {row['capacity']:.2f} requests/s: "
            f"{row['answered']} of {row['requests']} answered ({against(lost, 0, at_most=True)}), "
            f"{row['tokens'] / row['seconds']:.0f} tokens/s\n"
            f"    memory {growth:.3f} of before ({against(growth, FLAT, at_most=True)}; "
            f"{row['mib']['last quarter']:.0f} MiB, at most {row['mib']['most']:.0f}); blocks free: {blocks}\n"
            f"    first token p50/p99 {row['first_ms']['50']:.0f}/{row['first_ms']['99']:.0f} ms, between parts "
            f"{row['gap_ms']['50']:.0f}/{row['gap_ms']['99']:.0f} ms"
        )


if __name__ == "__main__":
    show(run(data=Path(sys.argv[1])))
