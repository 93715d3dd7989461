"""Serves repositories' tasks in this process, each once, without Triton.

For each repository it prints in a line what has been imported by then.

python serve_alone.py BACKBONE REPOSITORY ...
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

from fmplex_backend import families
from fmplex_backend.repository.config import load_backbone_config
from fmplex_backend.repository.configs import backbone_parameters
from fmplex_backend.repository.tasks import Repository, TaskSpec
from fmplex_backend.scheduling import CostModel
from fmplex_backend.types import Failed, Request, Running, Runtime, Vfm


def main(backbone: str, roots: list[Path]) -> None:
    """One request to each task."""
    import_module("fmplex_backend.serving.service")
    for root in roots:
        serve(root, backbone)
        print(json.dumps(sorted(sys.modules)))


def serve(root: Path, backbone: str) -> None:
    file = root / backbone / "config.pbtxt"
    config = load_backbone_config(file, backbone_parameters(root, backbone) or {})
    runtime = families.family(config.family).make_runtime(config, file, "cpu", 32, CostModel().predict)
    for spec in Repository(root, backbone).read().values():
        assert isinstance(spec, TaskSpec)
        extensions = runtime.load(spec.version.path)
        runtime.attach(extensions)
        reads = families.input_named(extensions.takes)
        assert reads is not None
        vfm = Vfm(spec.vfm, spec.name)
        request = Request(vfm, {extensions.takes: reads.array([reads.probe(None)])}, (), 0.0, lambda reply, final: None)
        request.extensions = vfm.extensions = extensions
        runtime.prepare(request)
        answer(runtime, request)


def answer(runtime: Runtime, request: Request) -> None:
    """Step by step to its end."""
    running = True
    while running:
        assert runtime.has_room(request)
        for done in runtime.run([request]):
            for _, outcome in done.outcomes:
                assert not isinstance(outcome, Failed), outcome
                if outcome.value is not None:
                    assert runtime.decode(request, outcome.value)
                if running := isinstance(outcome, Running):
                    request.work, request.rows = outcome.next_work, outcome.next_rows
    runtime.forget(request)


if __name__ == "__main__":
    main(sys.argv[1], list(map(Path, sys.argv[2:])))
