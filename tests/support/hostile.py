"""What somebody may put into a model repository, each a function that puts it there: no task can be made of any.

`TASK_JSON` and `STRINGS` spoil the task.json of a good task, `ENTRIES` put something beside the tasks.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

Put = Callable[[Path], Any]

# -- in the place of a file


def fifo(path: Path) -> None:
    """Whoever opens it waits for a writer."""
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.mkdir()


def link_loop(path: Path) -> None:
    path.symlink_to(path.name)


def device(path: Path) -> None:
    """It never ends."""
    path.symlink_to("/dev/zero")


def unix_socket(path: Path) -> None:
    """Bound beside its directory: the path of a socket has at most 107 bytes."""
    short = Path("/tmp", f"fmplex-{os.getpid()}.socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(short))
    shutil.move(short, path)


def sparse(path: Path) -> None:
    """A gigabyte that takes no place on the disk."""
    path.touch()
    os.truncate(path, 1 << 30)


IRREGULAR: tuple[Put, ...] = (fifo, directory, link_loop, device, unix_socket, sparse)


def content(text: str) -> Put:
    """A file with this in it."""

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write


# -- in a task: which file of version 1 is spoilt, and how

TASK_JSON: dict[str, Put] = {
    **{put.__name__: put for put in IRREGULAR},
    "depth": content("[" * 200_000),
    "number": content('{"family": ' + "9" * 10_000 + "}"),
    "twice": content('{"family": "text-encoder", "family": "text-encoder"}'),
    "nothing": content(""),
    "latin": lambda path: path.write_bytes(b'{"family": "\xff"}'),
}
# `weights` of the decoder section
WEIGHTS: dict[str, str] = {
    "surrogate": "\ud800",
    "escaped byte": "\udcff.safetensors",
    "zero byte": "a\0b",
    "long": "x" * 5000,
    "itself": ".",
    "task.json": "task.json",
}
STRINGS: dict[str, dict[str, Any]] = {
    **{f"weights {name}": {"decoder": {"weights": value}} for name, value in WEIGHTS.items()},
    "labels surrogate": {"decoder": {"labels": ["a", "\ud800", "b"]}},
    "prefix surrogate": {"encoder": {"prefix": "\udfff"}},
    "family surrogate": {"family": "\ud800"},
    "kind zero byte": {"decoder": {"kind": "\0"}},
}


def put_strings(file: Path, changes: dict[str, Any]) -> None:
    """Change fields of a task.json, also to what only JSON's escapes can write."""
    document = json.loads(file.read_text(encoding="utf-8"))
    for section, value in changes.items():
        document[section] = {**document[section], **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(document))


# -- beside the tasks: functions of the repository


def entry_of(config: Put, name: str) -> Put:
    """A directory with a version, and this as its config.pbtxt."""

    def put(repository: Path) -> None:
        (repository / name / "1").mkdir(parents=True)
        config(repository / name / "config.pbtxt")

    return put


def directory_named(name: bytes) -> Put:
    def put(repository: Path) -> None:
        os.makedirs(os.fsencode(repository) + b"/" + name + b"/1")

    return put


def endless_links(repository: Path) -> None:
    """Three links up: Triton follows them 3^40 times."""
    (repository / "links" / "1").mkdir(parents=True)
    for number in range(3):
        (repository / "links" / "1" / f"up{number}").symlink_to("..")


ENTRIES: dict[str, Put] = {
    **{f"config {put.__name__}": entry_of(put, f"config-{put.__name__}") for put in IRREGULAR},
    "config binary": entry_of(lambda path: path.write_bytes(bytes(range(256))), "config-binary"),
    "latin name": directory_named(b"x\xff"),
    "newline": directory_named(b"a\nb"),
    "escape": directory_named(b"a\x1b[31m"),
    "version of 2^63": directory_named(b"version/9223372036854775808"),
    "endless links": endless_links,
    "link loop": lambda repository: link_loop(repository / "loop"),
    "link to nothing": lambda repository: (repository / "dangling").symlink_to("nowhere"),
    "fifo": lambda repository: fifo(repository / "fifo"),
    "file": lambda repository: (repository / "né.txt").write_text("x"),
}
