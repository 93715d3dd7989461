"""Runs the experiments and keeps what they measured: `python -m benchmarks [NAME ...] [--quick] [--dtype bfloat16]`.

Each experiment is a module of `experiments` with `run(quick=...)` -> rows of figures and `show(rows)`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers.utils import logging

from benchmarks.harness.subject import subject_in

EXPERIMENTS = (
    "scheduling",
    "throughput",
    "groups",
    "canary",
    "dtypes",
    "mixture",
    "vision",
    "series",
    "forecaster",
    "audio",
    "memory",
    "changes",
    "witness",
    "fairness",
    "isolation",
    "efficiency",
    "hostile",
    "malformed",
    "sharing",
    "adapters",
    "deadlines",
    "capacity",
    "overhead",
    "ceiling",
    "prefixes",
    "locality",
    "generation",
    "paging",
    "streaming",
    "shares",
    "peers",
    "churn",
    "rebind",
    "elastic",
    "planner",
    "recovery",
    "simulator",
    "replay",
    "greedy",
    "conversations",
)
WITH_DATA = ("replay", "conversations")
APART = ("greedy", "conversations")  # many minutes each: run where they are named
RESULTS = Path("benchmarks/results")
MAIN_DTYPE = "float32"  # results in another lie in a folder of its name


def machine() -> dict[str, Any]:
    """The machine, the versions of the libraries, the commit and the day."""
    installed = {each.name: each.version for each in importlib.metadata.distributions()}
    versions = {name: installed.get(name, "") for name in ("torch", "transformers", "numpy", "nvidia-pytriton")}
    commit = ""
    if shutil.which("git"):
        line = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()
    lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    processor = {key.strip(): value.strip() for key, value in lines}
    bfloat16 = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in processor.get("flags", "").split()]
    return {
        "cpu": " ".join([processor.get("model name", platform.processor()), *bfloat16[-1:]]),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "commit": commit,
        "day": time.strftime("%Y-%m-%d"),
        **versions,
    }


def main(
    names: Annotated[
        list[str] | None,
        typer.Argument(help=f"Some of {', '.join(EXPERIMENTS)}; all but the last {len(APART)} by default."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds: a look, no figure to quote.")] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help=f"A folder with the Azure traces, for {' and '.join(WITH_DATA)}.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the backbone, the baselines' too.")] = MAIN_DTYPE,
) -> None:
    """Measure, print a line per figure, write benchmarks/results/NAME.json."""
    logging.disable_progress_bar()
    unknown = set(names or ()) - set(EXPERIMENTS)
    if unknown:
        raise typer.BadParameter(
            f"no such experiment: {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}"
        )
    if data is None and (needing := set(names or ()) & set(WITH_DATA)):
        raise typer.BadParameter(f"{' and '.join(sorted(needing))} needs --data, a folder with the Azure traces")
    results = RESULTS if dtype == MAIN_DTYPE else RESULTS / dtype
    results.mkdir(parents=True, exist_ok=True)
    with subject_in(dtype):
        for name in names or [each for each in EXPERIMENTS if each not in APART]:
            if name in WITH_DATA and data is None:
                print(f"== {name}: left out, no --data", flush=True)
                continue
            _run(name, results, data, quick=quick)


def _run(name: str, results: Path, data: Path | None, *, quick: bool) -> None:
    module = importlib.import_module(f"benchmarks.experiments.{name}")
    print(f"== {name}: {(module.__doc__ or '').splitlines()[0]}", flush=True)
    start = time.monotonic()
    rows = module.run(quick=quick, data=data) if name in WITH_DATA else module.run(quick=quick)
    document = {"experiment": name, "quick": quick, "machine": machine(), "rows": rows}
    if results != RESULTS:
        document["dtype"] = results.name
    (results / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    module.show(rows)
    if hasattr(module, "draw") and results == RESULTS:
        module.draw(rows)
    print(f"   ({time.monotonic() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    typer.run(main)
