"""Writes docs/benchmarks.md and the README's table from benchmarks/results/*.json.

Run as `python -m benchmarks.harness.report`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.__main__ import EXPERIMENTS, RESULTS
from benchmarks.harness import summary

PAGE, README = Path("docs/benchmarks.md"), Path("README.md")
MACHINES = re.compile(r"(?<=^## Measured\n\n).*?\.(?=\n\n)", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"^\| what \| measured .*?(?=\n\n)", re.MULTILINE | re.DOTALL)
INTRODUCTION = """# Benchmarks

`make bench` measures all of this anew (`make bench QUICK=1` for a look, `make bench ONLY=throughput` for one), and
`python -m benchmarks.harness.report` writes this page from what it left in `benchmarks/results/`. The server is the
real tritonserver, the backbone all-MiniLM-L6-v2, or SmolLM2-135M-Instruct where an experiment says so, and of `vision`,
`series`, `forecaster` and `audio` one of their family; adapters and heads have random weights, because what they cost
does not depend on their values. Where two arms are compared, they run in turn within one run (A B A B ...), and the
figure is the median of the rounds' ratios, the furthest rounds in brackets. Run it on a machine that does nothing else.

What is compared: **shared** is FMplex, one backbone and one process; **per-task** is plain Triton, a Python-backend
model and a copy of the backbone for each task, its adapter merged into the weights, dynamic batching on;
**partitioned** is the same with each process on cores of its own; **bare** is the backbone's forward in a loop,
with no server. `fifo` and `stfq` are FMplex's own queues with arrival order, and with fair order but no batches.
All run with the same memory allocator. Rates are counted from answer to answer: answers come a batch at a time, and
a batch more or less at the ends of a round would be a tenth of it.

Where sharing loses: on two cores that the models, Triton and the clients share (`spread` below), a process for each
task serves more and is faster with few tasks. There a text costs FMplex 1.0 ms of core time outside the passes, the
plain models 0.3 ms beside their own: answers go out one by one, each a round trip between two processes and a wake-up
of the client, where a plain model answers a batch at once. The passes' two threads are at work 73% of the time each:
they wait for the interpreter's lock, and for the cores that the rest uses. And adapters are not merged. Where models
have cores of their own, as on a GPU, none of this slows the passes down.

All is in float32 unless a title says otherwise. `make bench ONLY="throughput sharing fairness" DTYPE=bfloat16`
measures in bfloat16, the bare loop and the plain models as well, and leaves its results in
`benchmarks/results/bfloat16/`. A faster backbone shows what everything else costs: the same seconds are a larger part.

The Azure traces of `replay` and `conversations` are not part of the project: `python -m benchmarks replay --data DIR`
reads them from a folder with `azure_llm_2023/` and `azure_functions_sample/` out of
https://github.com/Azure/AzurePublicDataset. `greedy` and `conversations` take many minutes and run only by name.

On a machine with a GPU `make bench-gpu` runs capacity, sharing, fairness, adapters and overhead on a
1.5-billion-parameter backbone with random weights in bfloat16 (`SHAPE=bert-large` for another), next to the bare
forward and the device's matrix rate. It downloads nothing: `make bench-gpu-pack` makes `.build/bench-gpu.tar.xz`
where there is a network, and the Python there must have torch and transformers (`GPU_PYTHON=`, `GPU_VERSION=3.12`).
`CPU=1 SHAPE=tiny` makes a trial run without a GPU. What passes take on one stands in
[benchmarks-gpu.md](benchmarks-gpu.md).
"""


def section(document: dict[str, Any]) -> str:
    """One experiment: its module's docstring, what `show` prints, its picture, the machine."""
    module = importlib.import_module(f"benchmarks.experiments.{document['experiment']}")
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        module.show(document["rows"])
    machine = document["machine"]
    where = ", ".join(f"{key} {value}" for key, value in machine.items())
    quick = " Quick run: a look, not a figure to quote." if document["quick"] else ""
    title = document["experiment"].capitalize() + (f" in {document['dtype']}" if "dtype" in document else "")
    drawn = RESULTS / f"{document['experiment']}.svg"
    flames = "[Flame graph](flame-backbone.svg) of the same load.\n\n" if document["experiment"] == "overhead" else ""
    picture = f"![{title}](../{drawn})\n\n" if drawn.is_file() and "dtype" not in document else ""
    figures = f"```text\n{shown.getvalue()}```\n\n{picture}{flames}Measured on {where}.{quick}\n"
    return f"## {title}\n\n{(module.__doc__ or '').strip()}\n\n{figures}"


def main() -> None:
    """Write the page and the README's table."""
    files = [folder / f"{name}.json" for name in EXPERIMENTS for folder in (RESULTS, RESULTS / "bfloat16")]
    sections = [section(json.loads(file.read_text(encoding="utf-8"))) for file in files if file.is_file()]
    PAGE.write_text("\n".join([INTRODUCTION, *sections]), encoding="utf-8")
    page, found = TABLE.subn(lambda _: summary.table(RESULTS), README.read_text(encoding="utf-8"))
    if found != 1:
        raise RuntimeError(f"{README} has {found} tables of what was measured, one was expected")
    page = MACHINES.sub(lambda _: summary.where(RESULTS), page)
    README.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
