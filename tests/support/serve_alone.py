"""Serves a repository's tasks in this process, each once, without Triton, and prints what that has imported.

python serve_alone.py REPOSITORY BACKBONE
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
from fmplex_backend.types import Request, Running, Vfm


def main(root: Path, backbone: str) -> None:
    """One request to each task."""
    import_module("fmplex_backend.serving.service")
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
        running = True
        while running:
            ((_, outcome),) = [each for done in runtime.run([request]) for each in done.outcomes]
            running = isinstance(outcome, Running)  # e.g. a forecast that is rolled
        assert runtime.decode(request, outcome.value)
    print(json.dumps(sorted(sys.modules)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
