"""Answers of a GPU in each dtype against those of the CPU in float32, pass after pass: later ones may be captured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_fixtures import text_task, write_version
from gpu_only import DEVICE, needs_cuda
from model_fixtures import TINY, save_adapter, save_tiny, text_runtime, write_head
from peft import LoraConfig
from runtime_requests import ask, run, serve

from fmplex_backend.families.text_encoder.runtime import TextEncoderRuntime
from fmplex_backend.types import Vfm

pytestmark = needs_cuda

TARGETS = {"distilbert": ["q_lin", "lin2"], "mpnet": ["attn.q"], "modernbert": ["Wqkv"]}
TEXTS = ["w1", "w2 w3 w4 w5 w6 w7 w8 w9 w10", "", " ".join(f"w{n}" for n in range(13, 53)), "unknown words"]
# Tiny models have weights of 0.2, whose products are small: the largest error of a state is that of its 8 or 11 bits.
ALLOWED = {"float32": 1e-4, "float16": 0.05, "bfloat16": 0.2}
REPEATS = 6


def answers(runtime: TextEncoderRuntime, vfms: list[Vfm]) -> list[dict[str, Any]]:
    """One batch with a request of each, of several texts."""
    return run(runtime, [ask(runtime, vfm, *TEXTS[place % 3 :]) for place, vfm in enumerate(vfms)])[0]


def versions(root: Path, kind: str) -> list[Path]:
    """No adapter, LoRA of two ranks, DoRA; every pooling; and a decoder that reads tokens."""
    made = []
    for place, (rank, pooling) in enumerate([(0, "mean"), (2, "cls"), (16, "max"), (3, "mean"), (4, "mean")]):
        name = f"task{place}"
        rest = {"adapter": {"kind": "peft"}} if rank else {}
        decoder = {"kind": "embedding", "pooling": pooling, "normalize": False}
        if rank == 3:
            decoder = {"kind": "token-classification", "labels": ["a", "b", "c"]}
        version = write_version(root, name, 1, text_task(decoder, **rest))
        if rank == 3:
            write_head(version / "decoder.safetensors", 3)
        if rank:
            config = LoraConfig(r=rank, target_modules=TARGETS.get(kind, ["query"]), use_dora=rank == 4)
            save_adapter(version / "adapter", config, kind, seed=place)
        made.append(version)
    return made


@pytest.mark.parametrize("dtype", ALLOWED)
@pytest.mark.parametrize("kind", TINY)
def test_answers_are_those_of_the_cpu(tmp_path: Path, kind: str, dtype: str) -> None:
    model = save_tiny(tmp_path / "model", kind)
    paths = versions(tmp_path, kind)
    exact, runtime = text_runtime(model, device="cpu"), text_runtime(model, device=DEVICE, dtype=dtype)
    wanted = answers(exact, [serve(exact, path) for path in paths])
    vfms = [serve(runtime, path) for path in paths]
    mixed = [(vfms, wanted)] * REPEATS
    # DoRA runs without CUDA graphs, and so does what is in a pass with it.
    captured = [(vfms[:4], wanted[:4])] * REPEATS
    for served, expected in mixed + captured:
        for have, want in zip(answers(runtime, served), expected, strict=True):
            for name in ("EMBEDDING", "TOKEN_SCORES"):
                if name in want:
                    assert have[name].dtype == np.float32
                    np.testing.assert_allclose(have[name], want[name], rtol=1e-4, atol=ALLOWED[dtype])
    assert runtime.forward.graphs is not None
    assert runtime.forward.graphs.usable == (kind != "mpnet")  # its relative positions are made on the CPU
    assert (runtime.forward.graphs.captured > 0) == (kind != "mpnet")
