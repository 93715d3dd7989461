"""`fmplex task set`, `load`, `unload`, `rollback` and `remove`: what changes about a task that is there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fmplex.cli.options import DEFAULT, SERVER, AsJson, Asked, Name, Repo, Server, Weight
from fmplex.cli.shown import after, errors_shown, print_result
from fmplex.client.sync import Client
from fmplex_backend.errors import TaskProblem
from fmplex_backend.repository.configs import Terms
from fmplex_backend.repository.directory import UNLOADED, set_unloaded
from fmplex_backend.repository.grouping import GroupRepository
from fmplex_backend.repository.terms import term_text
from fmplex_backend.repository.writer import ModelRepository

NONE = "none"
Objective = Annotated[
    str, typer.Option("--slo-ms", metavar="MS|none", help="Latency objective, in milliseconds; none: no objective.")
]
Bound = Annotated[
    str,
    typer.Option("--max-queue", metavar="N|none", help="Number of requests that may wait; none: as the backbone says."),
]
BytesBound = Annotated[
    str,
    typer.Option(
        "--max-queue-bytes",
        metavar="N|none",
        help="Bytes that requests may take until they are answered; none: as the backbone says.",
    ),
]
Seconds = Annotated[
    str,
    typer.Option(
        "--max-seconds", metavar="S|none", help="From a request's arrival to its end; none: as the backbone says."
    ),
]
Running = Annotated[
    str,
    typer.Option(
        "--max-running", metavar="N|none", help="Of a language model: sequences that run at a time; none: no limit."
    ),
]
Part = Annotated[
    str,
    typer.Option(
        "--max-kv-share",
        metavar="PART|none",
        help="Of a language model: part of the memory for keys and values, up to 1; none: no limit.",
    ),
]
KINDS: dict[str, type[int] | type[float]] = {
    "slo_ms": float,
    "max_queue": int,
    "max_queue_bytes": int,
    "max_seconds": float,
    "max_running": int,
    "max_kv_share": float,
}


def set_(
    name: Name,
    repository: Repo = DEFAULT,
    weight: Weight = None,
    slo_ms: Objective = "",
    max_queue: Bound = "",
    max_queue_bytes: BytesBound = "",
    max_seconds: Seconds = "",
    max_running: Running = "",
    max_kv_share: Part = "",
    cache: Annotated[
        bool | None,
        typer.Option(
            "--cache/--no-cache",
            help="Keep its answers, for requests that are equal in every byte; --no-cache forgets them.",
        ),
    ] = None,
    new_tag: Annotated[
        bool, typer.Option("--new-tag", help="Give it a tag that no other task has; load the task afterwards.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Change a task's weight, latency objective, limits or cache, in effect with the next batch; or its tag."""
    with errors_shown(as_json):
        texts = (slo_ms, max_queue, max_queue_bytes, max_seconds, max_running, max_kv_share)
        terms = replace(_terms(weight, dict(zip(KINDS, texts, strict=True))), cache=cache)
        if terms == Terms() and not new_tag:
            options = ", ".join(map(_option, ("weight", *KINDS, "cache")))
            raise TaskProblem(f"nothing to set. Give {options} or --new-tag")
        models = GroupRepository(repository)
        terms.check()
        changed = terms.given()
        groups: list[str] = []
        if new_tag:
            changed["tag"], groups = models.set_new_tag(name), models.groups_of(name)
            for group in groups:
                models.renew(group)
        if terms != Terms():
            models.set(name, terms)
        cleared = terms.cleared
        words = [
            *(f"{key} {term_text(value)}" for key, value in changed.items()),
            *(f"no {key}" for key in sorted(cleared)),
        ]
        words += [f"written anew, to be loaded too: {', '.join(groups)}"] if groups else []
        document = {"task": name} | changed | dict.fromkeys(cleared) | ({"groups": groups} if groups else {})
        print_result(document, f"{name}: {', '.join(words)}", as_json)


def _terms(weight: float | None, given: dict[str, str]) -> Terms:
    values = {key: _number(text, _option(key), KINDS[key]) for key, text in given.items() if text not in ("", NONE)}
    return Terms(weight, cleared=frozenset(key for key, text in given.items() if text == NONE), **values)


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _number(text: str, option: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise typer.BadParameter(f"{text!r} is neither {what} nor {NONE!r}", param_hint=option) from None


def load(
    name: Name,
    repository: Repo = DEFAULT,
    server: Asked = SERVER,
    as_json: AsJson = False,
) -> None:
    """Let a running server take up a task that was unloaded, moved in or changed.

    The exit status is 1 where it is refused. The file UNLOADED, by which a controller keeps it unloaded, is removed.
    """
    with errors_shown(as_json):
        # The server may run on a repository elsewhere.
        done = name in _names(repository) and _set_unloaded(repository, name, False)
        said = after(f"{name} is kept unloaded no more, but") if done else contextlib.nullcontext()
        with said, Client(server) as client:
            client.load(name)
        print_result({"task": name, "loaded": True}, f"{name}: loaded", as_json)


def unload(
    name: Name,
    repository: Repo = DEFAULT,
    server: Asked = SERVER,
    as_json: AsJson = False,
) -> None:
    """Unload a task and keep it so, also over restarts, until `fmplex task load`: its files stay.

    Its directory gets the file UNLOADED, which the controller beside a server goes by. Without a server that can be
    reached, it is not loaded once there is one.
    """
    with errors_shown(as_json):
        models = ModelRepository(repository)
        if name not in models.tasks():
            models.task(name)  # raises, naming the tasks there are
        _set_unloaded(repository, name, True)
        with after(f"{name} is kept unloaded from now on, but"), Client(server) as client:
            client.unload(name)
        print_result({"task": name, "loaded": False}, f"{name}: unloaded", as_json)


def _names(repository: Path) -> Collection[str]:
    return os.listdir(repository) if repository.is_dir() else ()


def _set_unloaded(repository: Path, name: str, unloaded: bool) -> bool:
    try:
        return set_unloaded(repository / name, unloaded)
    except OSError as error:
        change = "written" if unloaded else "removed"
        raise TaskProblem(
            f"{repository / name / UNLOADED}: it cannot be {change}: {error.strerror}. Do it as that directory's owner"
        ) from None


def rollback(
    name: Name,
    to: Annotated[int | None, typer.Option(help="Version to serve; default: the one before.")] = None,
    repository: Repo = DEFAULT,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Serve another of a task's versions: the one before, or any with --to, forward too.

    While one is tried as a canary or a shadow, that ends, and without --to the version that serves goes on.
    """
    with errors_shown(as_json):
        saved = ModelRepository(repository).rollback(name, to)
        if server:
            with after(f"{name} is at version {saved.version} in {repository}, but"), Client(server) as client:
                client.load(name)
        print_result({"task": name, "version": saved.version}, f"{name}: version {saved.version}", as_json)


def remove(
    name: Name,
    repository: Repo = DEFAULT,
    server: Annotated[
        str, typer.Option(help="Let this running server unload it first; without, it answers with errors soon.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Delete a task's directory with all its versions; nothing brings it back.

    A server that runs on the repository goes on listing the task, and answers its requests with errors, until it is
    told with --server to unload it.
    """
    with errors_shown(as_json):
        models = GroupRepository(repository)
        if name not in models.tasks():
            models.remove(name)  # raises, naming the tasks there are
        groups = models.groups_of(name)
        if server:
            with Client(server) as client:
                client.unload(name)
        models.remove(name)
        told = f"; still asked for by the groups {', '.join(groups)}" if groups else ""
        print_result({"task": name, "removed": True, "groups": groups}, f"{name}: removed{told}", as_json)
