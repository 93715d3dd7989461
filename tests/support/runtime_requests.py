"""Requests that an encoder's runtime runs by itself, without engine and server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backend_fixtures import bytes_of

from fmplex_backend.families.encoder_runtime import EncoderRuntime
from fmplex_backend.types import Finished, Pass, Reply, Request, Vfm


def serve(runtime: EncoderRuntime[Any], path: Path) -> Vfm:
    """A vFM that is attached."""
    vfm = Vfm(0, path.parent.name)
    vfm.extensions = runtime.load(path)
    runtime.attach(vfm.extensions)
    return vfm


def ask(runtime: EncoderRuntime[Any], vfm: Vfm, *texts: str) -> Request:
    request = Request(vfm, {"TEXT": bytes_of(*texts)}, (), 0.0, unanswered)
    request.extensions = vfm.extensions
    runtime.prepare(request)
    return request


def unanswered(reply: Reply, final: bool) -> None:
    raise AssertionError("a runtime answers nobody")


def run(runtime: EncoderRuntime[Any], batch: Sequence[Request]) -> tuple[list[dict[str, Any]], list[Pass]]:
    """Each request's output tensors, and the passes."""
    passes = list(runtime.run(batch))
    outcomes = {id(request): outcome for done in passes for request, outcome in done.outcomes}
    assert len(outcomes) == len(batch)
    tensors = []
    for request in batch:
        outcome = outcomes[id(request)]
        assert isinstance(outcome, Finished)
        tensors.append(dict(runtime.decode(request, outcome.value)))
    return tensors, passes
