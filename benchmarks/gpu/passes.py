"""Passes over a backbone without server and engine: what LoRA, CUDA graphs and kernels bring, and where time goes.

    python -m benchmarks.gpu.passes [--shape bert-large] [--quick]

All arms run 32 texts a pass with the next pass queued behind the one at hand, as the engine does, and take turns.
`bare` is transformers' model alone, as it comes and as a CUDA graph. Prints texts per second, and the ratio to the
faster `bare`.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoModel

from benchmarks.gpu.run import RESULTS, SHAPES, build, describe, device_name, matrix_rate
from benchmarks.harness.repositories import write_adapters
from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.adapters.peft import Adapter, load_adapter
from fmplex_backend.families.cuda_graphs import Recorder
from fmplex_backend.families.text_encoder.attention import never_reading_masks, unpadded
from fmplex_backend.families.text_encoder.forward import Forward
from fmplex_backend.families.text_encoder.tokenizer import NO_SPANS, Tokens
from testing.models import minilm

ROWS = 32
SHOWN = 9  # kernels of an arm
ADAPTERS = 32
Run = Callable[[], Callable[[], Any]]  # starts a pass; what it returns waits for its results


def bare(model: Any, tokens: int) -> Run:
    """The model as transformers has it; mean pooled."""
    ids = torch.randint(10, 20000, (ROWS, tokens))
    ones = torch.ones(ROWS, tokens, dtype=torch.int64, device=model.device)

    def start() -> Callable[[], Any]:
        with torch.inference_mode(), unpadded():
            given = ids.to(model.device, non_blocking=True)
            states = model(input_ids=given, attention_mask=ones).last_hidden_state
            return _fetched(states.float().mean(dim=1))

    return start


def bare_graph(model: Any, tokens: int) -> Run:
    """The same as a CUDA graph."""
    ids = torch.randint(10, 20000, (ROWS, tokens), device=model.device)
    ones = torch.ones_like(ids)

    def body() -> torch.Tensor:
        with torch.inference_mode(), unpadded():
            states: torch.Tensor = model(input_ids=ids, attention_mask=ones).last_hidden_state
            return states.float().mean(dim=1)

    graph, pooled = Recorder(model.device).record(body)
    host = torch.randint(10, 20000, (ROWS, tokens)).pin_memory()

    def start() -> Callable[[], Any]:
        with torch.inference_mode():
            ids.copy_(host, non_blocking=True)
            graph.replay()
            return _fetched(pooled)

    return start


def _fetched(result: torch.Tensor) -> Callable[[], Any]:
    if result.device.type == "cpu":
        return lambda: result
    torch.empty(result.shape, dtype=result.dtype, pin_memory=True).copy_(result, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return done.synchronize


def ours(forward: Forward, adapters: list[Adapter | None], tokens: int, shortest: float = 1.0) -> Run:
    """A pass of ours, each row with the next adapter of the list; the first rows are shorter."""
    generator = torch.Generator().manual_seed(0)
    lengths = [round(tokens * (shortest + (1 - shortest) * row / (ROWS - 1))) for row in range(ROWS)]
    rows = [
        Tokens(torch.randint(10, 20000, (length,), generator=generator).tolist(), [], NO_SPANS, False)
        for length in lengths
    ]
    own = sorted((adapters[i % len(adapters)] for i in range(ROWS)), key=forward.bank.order)
    return lambda: forward.launch(rows, own, {"mean"}).hidden


def rate(run: Run, seconds: float) -> float:
    """Texts per second, with one pass queued behind the one that is waited for."""
    done, start = 0, time.perf_counter()
    ahead = run()
    while time.perf_counter() - start < seconds:
        wait, ahead = ahead, run()
        wait()
        done += ROWS
    ahead()
    return (done + ROWS) / (time.perf_counter() - start)


def profiled(run: Run, passes: int = 10) -> list[tuple[str, float, float]]:
    """(kernel, its microseconds a pass, its launches a pass), the longest first."""
    for _ in range(3):
        run()()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(passes):
            run()()
    rows = [
        (each.key, each.self_device_time_total / passes, each.count / passes)
        for each in seen.key_averages()
        if each.self_device_time_total
    ]
    return sorted(rows, key=lambda row: -row[1])


def main(
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "bert-large",
    tokenizer: Annotated[str, typer.Option(help="A directory with MiniLM's tokenizer.")] = "",
    quick: Annotated[bool, typer.Option("--quick")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="A trial run without a GPU.")] = False,
    lengths: Annotated[str, typer.Option(help="Tokens of a text, with commas.")] = "16,128",
    targets: Annotated[str, typer.Option(help="Modules that get LoRA, with commas; by default the shape's.")] = "",
    profile: Annotated[bool, typer.Option(help="Print the longest kernels.")] = True,
) -> None:
    """Measure passes on this machine's GPU."""
    device = torch.device("cpu" if cpu else "cuda:0")
    rounds, seconds = (3, 0.5) if quick else (7, 1.0)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        parameters = build(shape, tokenizer or str(minilm()), Path(folder, "model"))
        describe(shape, Path(folder, "model"), gpu=not cpu).write(Path(folder, "subject.json"))
        alone = AutoModel.from_pretrained(Path(folder, "model"), dtype=torch.bfloat16).to(device).eval()
        model = AutoModel.from_pretrained(Path(folder, "model"), dtype=torch.bfloat16).to(device).eval()
        for each in (alone, model):
            never_reading_masks(each)
        bank = AdapterBank(model, device)
        chosen = tuple(filter(None, targets.split(",")))
        adapters: list[Adapter | None] = []
        for path in write_adapters(Path(folder, "adapters"), ADAPTERS, targets=chosen):
            adapter = load_adapter(path, model, torch.bfloat16, device)
            bank.attach(adapter)
            adapters.append(adapter)
        document: dict[str, Any] = {
            "shape": shape,
            "parameters": parameters,
            "targets": chosen,
            "rows": ROWS,
        } | device_name(gpu=not cpu)
        document |= {"matrix_tflops": matrix_rate(device), "points": []}
        for tokens in map(int, lengths.split(",")):
            arms = _arms(alone, model, bank, adapters, tokens)
            for run in arms.values():  # kernels are compiled and graphs captured here
                for _ in range(5):
                    run()()
            seen: dict[str, list[float]] = {name: [] for name in arms}
            for _ in range(rounds):
                for name, run in arms.items():
                    seen[name].append(rate(run, seconds))
            point: dict[str, Any] = {"tokens": tokens, "rates": seen, "kernels": {}}
            if profile and not cpu:
                for name in ("bare, a CUDA graph", "graphs, none, padded", "graphs, 10 LoRA", "graphs, none"):
                    point["kernels"][name] = profiled(arms[name])
            document["points"].append(point)
        show(document)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"passes-{shape}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def show(document: dict[str, Any]) -> None:
    """A line per arm, and the kernels that take longest."""
    for point in document["points"]:
        tokens, seen = point["tokens"], point["rates"]
        rates = {name: statistics.median(each) for name, each in seen.items()}
        best = max(value for name, value in rates.items() if name.startswith("bare"))
        limit = document["matrix_tflops"]
        print(f"{document['shape']}, {tokens} tokens, {document['rows']} texts a pass; one product {limit:.0f} TFLOP/s")
        for name, value in rates.items():
            tflops = 2 * document["parameters"] * tokens * value / 1e12
            spread = f"({min(seen[name]):.0f} to {max(seen[name]):.0f})"
            print(f"{name:34} {value:6.0f} texts/s {spread:18} {value / best:.3f} of bare {tflops:5.0f} TFLOP/s")
        for name, kernels in point["kernels"].items():
            print(f"-- {name}: {sum(each[1] for each in kernels):.0f} us of kernels a pass")
            for key, microseconds, count in kernels[:SHOWN]:
                print(f"   {microseconds:8.1f} us {count:6.1f} x {key[:70]}")
        print()


def _arms(alone: Any, model: Any, bank: AdapterBank, adapters: list[Adapter | None], tokens: int) -> dict[str, Run]:
    eager = Forward(model, bank, 0, ROWS, graphs=False)
    arms = {"bare": bare(alone, tokens)}
    if eager.on_gpu:
        arms["bare, a CUDA graph"] = bare_graph(alone, tokens)
    forwards = {"graphs": Forward(model, bank, 0, ROWS), "without graphs": eager}
    mixes: dict[str, list[Adapter | None]] = {
        "none": [None],
        "10 LoRA": adapters[:10],
        "a LoRA for each row": adapters[:ROWS],
        "5 LoRA, 5 none": [*adapters[:5], *[None] * 5],
    }
    for name, forward in forwards.items():
        if forward.graphs:
            forward.graphs.part = 1.0  # all are captured in the warm-up
        arms |= {f"{name}, {mix}": ours(forward, own, tokens) for mix, own in mixes.items()}
        arms[f"{name}, none, padded"] = ours(forward, [None], tokens, shortest=0.5)
    return arms


if __name__ == "__main__":
    typer.run(main)
