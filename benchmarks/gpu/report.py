"""Writes docs/benchmarks-gpu.md from benchmarks/results/gpu/passes-*.json: `python -m benchmarks.gpu.report`."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

from benchmarks.gpu import passes
from benchmarks.gpu.run import RESULTS

PAGE = Path("docs/benchmarks-gpu.md")
INTRODUCTION = """# On a GPU

Passes over a backbone of useful size, with random weights in bfloat16, on the device alone: no server and no engine,
with the next pass queued behind the one at hand, as the engine does. All arms take turns within one run; figures are
medians, the furthest rounds in brackets. `bare` is transformers' model in a loop, as it comes and as a CUDA graph;
TFLOP/s are those of the model's products, beside the rate of one large product of matrices measured in the same run.

`graphs` is FMplex: passes are CUDA graphs, captured by shape, in which LoRA of all tasks takes two kernels a module;
`without graphs` is what runs until a shape has come up a few times, and where a graph cannot be captured.

Repeat it with `make bench-gpu-pack` where there is a network, and `make bench-gpu-passes SHAPE=bert-large` on the
machine with the GPU; `python -m benchmarks.gpu.report` writes this page.
"""


def main() -> None:
    """Write the page."""
    sections = []
    for file in sorted(RESULTS.glob("passes-*.json")):
        document = json.loads(file.read_text(encoding="utf-8"))
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            passes.show(document)
        where = f"{document['gpu']}, {document['gpu_memory']}, driver {document['driver']}"
        sections.append(
            f"## {document['shape']}\n\n```text\n{shown.getvalue().rstrip()}\n```\n\nMeasured on {where}.\n"
        )
    PAGE.write_text("\n".join([INTRODUCTION, *sections]), encoding="utf-8")


if __name__ == "__main__":
    main()
