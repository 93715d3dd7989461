"""Families whose passes take no time, for what everything else costs: `instant`, and text encoders without a forward.

`instant` neither tokenises nor decodes: each text comes back as its LABEL. `no-forward` is the text encoder as it is
served, whose forward gives the same vectors for all texts at once.
"""

from __future__ import annotations

import os
import site
import sysconfig
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fmplex_backend.families.text_encoder.spec import TextEncoders
from fmplex_backend.interface import TRUNCATED
from fmplex_backend.repository.parameters import BackboneConfig
from fmplex_backend.types import Finished, KeepsNothing, Pass, PassShape, Predict, Request, Runtime, Work

if TYPE_CHECKING:
    from fmplex_backend.families.forward import Launched

ENTRY_POINTS = """
[fmplex.families]
instant = benchmarks.harness.instant:Instant
no-forward = benchmarks.harness.instant:NoForward
"""
LABELS = 2


def install(folder: Path) -> dict[str, str]:
    """Variables of a server that knows the families: its stubs find them in an environment that is made in `folder`."""
    venv.create(folder, with_pip=False, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # addsitedir, not plain paths: it honours the .pth files there, such as those of editable installs.
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    lines.append(f"import sys; sys.path.insert(0, {str(Path.cwd())!r})")  # the tree that is measured
    (packages / "outer.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    info = packages / "instant_families-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: instant-families\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(ENTRY_POINTS, encoding="utf-8")
    return {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(folder)}


class Instant(TextEncoders):
    """Answers at once."""

    name = "instant"

    def make_runtime(
        self, config: BackboneConfig, file: Path, device: str, max_items: int, predict: Predict
    ) -> Runtime:
        return InstantRuntime()


class NoForward(TextEncoders):
    """Does everything but the forward."""

    name = "no-forward"

    def make_runtime(
        self, config: BackboneConfig, file: Path, device: str, max_items: int, predict: Predict
    ) -> Runtime:
        runtime: Any = super().make_runtime(config, file, device, max_items, predict)
        runtime.forward = _NoForward(runtime.hidden, max_items)
        return runtime  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class InstantTask:
    """A task's version, of which nothing is read."""

    takes: ClassVar[str] = "TEXT"
    adapted: ClassVar[bool] = False
    repeats: ClassVar[bool] = True
    outputs: ClassVar[Mapping[str, int | None]] = {"SCORES": LABELS, "LABEL": 1, TRUNCATED.name: 1}


class InstantRuntime(KeepsNothing):
    """Implements `fmplex_backend.types.Runtime`."""

    max_batch_tokens = 1 << 20
    dtype = "float32"
    fingerprint: str | None = None
    queues_passes = False

    def load(self, version: Path) -> InstantTask:
        return InstantTask()

    def prepare(self, request: Request) -> None:
        request.prepared = request.inputs["TEXT"]
        request.items = len(request.prepared)
        request.work = Work(request.items, request.items, request.items)

    def attach(self, extensions: InstantTask) -> None:
        """There is nothing to run."""

    def detach(self, extensions: InstantTask) -> None:
        """There is nothing to free."""

    def run(self, batch: Sequence[Request]) -> Iterator[Pass]:
        rows = sum(request.items for request in batch)
        portions = [(request, request.work) for request in batch]
        yield Pass(PassShape(rows, 1, 0), portions, [(request, Finished(request.prepared)) for request in batch])

    def decode(self, request: Request, value: Any) -> Mapping[str, Any]:
        scores = np.full((len(value), LABELS), 1 / LABELS, dtype=np.float32)
        return {"SCORES": scores, "LABEL": value, TRUNCATED.name: np.zeros((len(value), 1), dtype=np.bool_)}

    def is_fatal(self, error: Exception) -> bool:
        return False

    def profile(self) -> Iterator[tuple[PassShape, float]]:
        return iter(())


class _NoForward:
    """In the place of `Forward`."""

    def __init__(self, hidden: int, max_items: int) -> None:
        import torch

        self.vectors = torch.ones(max_items, hidden)

    def launch(self, rows: Sequence[Any], adapters: Sequence[Any], poolings: set[str]) -> Launched:
        from fmplex_backend.families.forward import Launched

        return Launched([(0, len(rows), {kind: self.vectors[: len(rows)] for kind in poolings})], None, 0.0)
