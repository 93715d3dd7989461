"""The experiments that a GPU changes (memory, sharing, fairness, adapters, overhead), on a backbone of useful size.

    python -m benchmarks.gpu.run [NAME ...] [--shape qwen3-1.7b] [--quick]

Weights are random, of a published model's shape, in bfloat16, which speed and memory do not depend on. Texts are 8
times as long as on the CPU. Results go to benchmarks/results/gpu/, each with the limits of the device, measured in the
same run: the bare forward's rate on the same texts, and the device's rate of matrix products.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import subprocess
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoConfig, AutoModel, AutoTokenizer

from benchmarks.__main__ import machine
from benchmarks.harness.bare import Bare
from benchmarks.harness.repositories import texts_of_length
from benchmarks.harness.subject import Subject, subject
from testing.models import minilm

EXPERIMENTS = ("capacity", "sharing", "fairness", "adapters", "overhead")
RESULTS = Path("benchmarks/results/gpu")
TOKENS, STRETCH = 16, 8
VOCABULARY = 30522  # the tokenizer's
QWEN = ("q_proj", "v_proj")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BERT = ("query", "value")
# type, targets of LoRA, every linear module, and what AutoConfig.for_model takes; vocabularies cut to the tokenizer's.
SHAPES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], dict[str, int]]] = {
    "qwen3-1.7b": (
        "qwen3",
        QWEN,
        LINEAR,
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
    ),
    "bert-large": (
        "bert",
        BERT,
        (*BERT, "key", "dense"),
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    ),
    "tiny": (  # for a trial run without a GPU
        "bert",
        BERT,
        (*BERT, "key", "dense"),
        {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2},
    ),
}


def build(shape: str, tokenizer: str, folder: Path) -> int:
    """Write a model directory with random weights; returns the number of parameters outside the embeddings."""
    kind, _, _, sizes = SHAPES[shape]
    config = AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, max_position_embeddings=2048, pad_token_id=0, use_cache=False, **sizes
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModel.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(str(folder))
    held = sum(each.numel() for name, each in model.named_parameters() if "embed" not in name)
    return int(held)


def matrix_rate(device: torch.device) -> float:
    """TFLOP/s of a product of random bfloat16 matrices, 8192 x 8192 on a GPU and 1024 x 1024 on a CPU."""
    size, times = (8192, 10) if device.type == "cuda" else (1024, 3)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    _wait(device)
    start = time.perf_counter()
    for _ in range(times):
        a @ b
    _wait(device)
    return 2 * size**3 * times / (time.perf_counter() - start) / 1e12


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def limit(parameters: int) -> dict[str, float]:
    """The bare forward's rate on the experiments' texts, and the matrix rate, which no forward can exceed."""
    device = torch.device("cuda" if subject().gpu else "cpu")
    rate = matrix_rate(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    tokens = TOKENS * STRETCH
    with Bare(texts_of_length(TOKENS, 256), subject().max_batch, subject().apart.models[0]) as bare:
        per_second = sorted(bare.per_second(3.0) for _ in range(3))[1]
    reached = 2 * parameters * tokens * per_second / 1e12
    return {"tokens": tokens, "bare_per_s": per_second, "bare_tflops": reached, "matrix_tflops": rate}


@contextlib.contextmanager
def multi_process_service() -> Iterator[bool]:
    """Runs NVIDIA's MPS where that can be started; yields whether it was. Without, processes take turns on the GPU."""
    binary = shutil.which("nvidia-cuda-mps-control")
    started = bool(binary) and not subprocess.run([str(binary), "-d"], check=False, capture_output=True).returncode
    try:
        yield started
    finally:
        if started:
            subprocess.run([str(binary)], input=b"quit\n", check=False, capture_output=True)


def device_name(*, gpu: bool) -> dict[str, str]:
    """The GPU's name, memory and driver."""
    if not gpu:
        return {"gpu": "none: a trial on the CPU"}
    line = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    name, memory, driver = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split(", ")
    return {"gpu": name, "gpu_memory": memory, "driver": driver.strip()}


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Some of {', '.join(EXPERIMENTS)}.")] = None,
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "qwen3-1.7b",
    tokenizer: Annotated[str, typer.Option(help="A directory with MiniLM's tokenizer.")] = "",
    quick: Annotated[bool, typer.Option("--quick")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="A trial run without a GPU.")] = False,
) -> None:
    """Measure on this machine's GPU."""
    unknown = set(names or ()) - set(EXPERIMENTS)
    if unknown or shape not in SHAPES:
        raise typer.BadParameter(f"there are {', '.join(EXPERIMENTS)}, and the shapes {', '.join(SHAPES)}")
    if not cpu and not torch.cuda.is_available():
        raise typer.BadParameter("torch finds no GPU here; --cpu makes a trial run without one")
    RESULTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, multi_process_service() as partitions:
        parameters = build(shape, tokenizer or str(minilm()), Path(folder, "model"))
        measured = describe(shape, Path(folder, "model"), gpu=not cpu)
        measured.write(Path(folder, "subject.json"))
        about = machine() | device_name(gpu=not cpu) | {"mps": str(partitions)}
        bound = limit(parameters)
        print(
            f"{measured.name}, {parameters / 1e9:.2f} billion parameters, texts of {bound['tokens']} tokens: bare "
            f"{bound['bare_per_s']:.0f} texts/s, {bound['bare_tflops']:.0f} of {bound['matrix_tflops']:.0f} TFLOP/s",
            flush=True,
        )
        done: list[str] = []
        for name in names or EXPERIMENTS:
            module = importlib.import_module(f"benchmarks.experiments.{name}")
            print(f"== {name} (lengths x {STRETCH}): {(module.__doc__ or '').splitlines()[0]}", flush=True)
            try:
                rows = module.run(quick=quick)
            except Exception:
                if not done:  # the others will fail for the same reason
                    raise
                traceback.print_exc()
                continue
            module.show(rows)
            document = {"experiment": name, "quick": quick, "machine": about, "subject": measured.name}
            document |= {"stretch": STRETCH, "limit": bound, "rows": rows}
            (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
            done.append(name)
        if len(done) < len(names or EXPERIMENTS):
            raise SystemExit("some experiments failed")


def describe(shape: str, model: Path, *, gpu: bool) -> Subject:
    """The subject of a shape whose weights are in `model`."""
    _, targets, linear, sizes = SHAPES[shape]
    name = f"{shape} (random weights)"
    return Subject(name, str(model), sizes["hidden_size"], targets, linear, gpu=gpu, dtype="bfloat16", stretch=STRETCH)


if __name__ == "__main__":
    typer.run(main)
