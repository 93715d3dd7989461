"""Runs the experiments and keeps what they measured: `python -m benchmarks [NAME ...] [--quick]`.

Each experiment is a module here with `run(quick=...)` -> rows of figures and `show(rows)`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers.utils import logging

EXPERIMENTS = (
    "scheduling",
    "throughput",
    "mixture",
    "memory",
    "changes",
    "witness",
    "fairness",
    "isolation",
    "sharing",
    "adapters",
    "deadlines",
    "capacity",
    "overhead",
    "churn",
    "simulator",
    "replay",
)
RESULTS = Path("benchmarks/results")


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    versions = {
        name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy", "nvidia-pytriton")
    }
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0].split(":", 1)[1].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        "day": time.strftime("%Y-%m-%d"),
        **versions,
    }


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Some of {', '.join(EXPERIMENTS)}; all by default.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds: a look, not a figure to quote.")] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="A folder with the Azure traces; without, replay is left out.")
    ] = None,
) -> None:
    """Measure, print a line per figure, write benchmarks/results/NAME.json."""
    warnings.simplefilter("ignore", FutureWarning)  # transformers' own, at import
    logging.disable_progress_bar()
    unknown = set(names or ()) - set(EXPERIMENTS)
    if unknown:
        raise typer.BadParameter(
            f"no such experiment: {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}"
        )
    if data is None and "replay" in (names or ()):
        raise typer.BadParameter("replay needs --data, a folder with the Azure traces")
    RESULTS.mkdir(exist_ok=True)
    for name in names or EXPERIMENTS:
        if name == "replay" and data is None:
            print("== replay: left out, no --data", flush=True)
            continue
        module = importlib.import_module(f"benchmarks.{name}")
        print(f"== {name}: {(module.__doc__ or '').splitlines()[0]}", flush=True)
        start = time.monotonic()
        rows = module.run(quick=quick, data=data) if name == "replay" else module.run(quick=quick)
        document = {"experiment": name, "quick": quick, "machine": machine(), "rows": rows}
        (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        module.show(rows)
        if hasattr(module, "draw"):
            module.draw(rows)
        print(f"   ({time.monotonic() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    typer.run(main)
