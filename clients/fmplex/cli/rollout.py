"""`fmplex task canary`, `shadow` and `promote`: a new version is tried beside the one that serves."""

from __future__ import annotations

from typing import Annotated

import typer

from fmplex.cli.options import DEFAULT, AsJson, Name, Repo, Server
from fmplex.cli.shown import after, errors_shown, print_result
from fmplex.client.sync import Client
from fmplex_backend.repository.candidates import TOLERANCE
from fmplex_backend.repository.rollout import Rollout, Tried

Version = Annotated[int | None, typer.Option(help="The version to try; default: the highest.", min=1)]
Stop = Annotated[bool, typer.Option("--stop", help="End it; the version that serves goes on.")]


Share = Annotated[str, typer.Option(help="Part of the requests, e.g. 5%.", metavar="PART")]


def _part(text: str) -> float:
    """5% or 0.05."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        problem = f"{text!r} is no part of the requests: write e.g. 5% or 0.05"
        raise typer.BadParameter(problem, param_hint="--share")
    return share


def canary(
    name: Name,
    version: Version = None,
    share: Share = "5%",
    stop: Stop = False,
    repository: Repo = DEFAULT,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Let a version answer a part of a task's requests, chosen by their ids; the version before answers the rest.

    A running server takes it up from the repository. Again with another --share or --version it is changed.
    """
    with errors_shown(as_json):
        models = Rollout(repository)
        if stop:
            models.stop(name, "canary")
            _done({"task": name, "canary": None}, f"{name}: no canary", name, server, as_json)
            return
        part = _part(share)
        tried = models.canary(name, part, version)
        words = f"{name}: version {tried.version} answers {100 * part:g}%, version {tried.served} the rest"
        _done(_document(tried) | {"share": part}, words, name, server, as_json)


def shadow(
    name: Name,
    version: Version = None,
    tolerance: Annotated[
        float, typer.Option(help="By how much numbers, or the cosine of vectors, may differ and be the same.")
    ] = TOLERANCE,
    stop: Stop = False,
    repository: Repo = DEFAULT,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Let a version work on copies of a task's requests, in time that nobody else wants, and compare its answers.

    A running server takes it up from the repository. `fmplex status` tells how many answers are the same.
    """
    with errors_shown(as_json):
        models = Rollout(repository)
        if stop:
            models.stop(name, "shadow")
            _done({"task": name, "shadow": None}, f"{name}: no shadow", name, server, as_json)
            return
        tried = models.shadow(name, version, tolerance)
        words = f"{name}: version {tried.version} shadows version {tried.served}"
        _done(_document(tried) | {"tolerance": tolerance}, words, name, server, as_json)


def promote(
    name: Name,
    repository: Repo = DEFAULT,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Serve the version of a task's canary, of its shadow where it has no canary, or one that is held; both end.

    `fmplex task rollback` ends them and goes on with the version that serves.
    """
    with errors_shown(as_json):
        saved = Rollout(repository).promote(name)
        document = {"task": name, "version": saved.version}
        _done(document, f"{name}: version {saved.version}", name, server, as_json)


def _document(tried: Tried) -> dict[str, object]:
    return {"task": tried.task, tried.role: tried.version, "version": tried.served}


def _done(document: dict[str, object], words: str, name: str, server: str, as_json: bool) -> None:
    """Load the task on a server that is named, and say what is done."""
    if server:
        with after(f"{words}, as its entry says, but"), Client(server) as client:
            client.load(name)
    print_result(document, words, as_json)
