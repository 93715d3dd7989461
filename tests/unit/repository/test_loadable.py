"""Directories that end tritonserver, or stop it for good: refused before it reads them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import write_task

from fmplex_backend.errors import TaskRefused
from fmplex_backend.repository import loadable
from fmplex_backend.repository.loadable import check_loadable


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task's directory that nothing is wrong with."""
    return write_task(tmp_path, "task", 0).parent


def names_a_file(task: Path, field: str) -> None:
    with (task / "config.pbtxt").open("a") as config:
        config.write(field)


def labels(task: Path) -> Path:
    names_a_file(task, 'output { name: "X" data_type: TYPE_FP32 dims: [1] label_filename: "labels.txt" }')
    return task / "labels.txt"


def warmup(task: Path) -> Path:
    given = 'key: "I" value { data_type: TYPE_FP32 dims: [1] input_data_file: "raw" }'
    names_a_file(task, f'model_warmup {{ name: "w" batch_size: 1 inputs {{ {given} }} }}')
    (task / "warmup").mkdir()
    return task / "warmup" / "raw"


def state(task: Path) -> Path:
    initial = 'initial_state { data_type: TYPE_FP32 dims: [1] data_file: "raw" }'
    text = f'sequence_batching {{ state {{ input_name: "I" output_name: "O" {initial} }} }}'
    (task / "config.pbtxt").write_text(text)  # of another backend's model: an ensemble has no state
    (task / "initial_state").mkdir()
    return task / "initial_state" / "raw"


def empty(task: Path) -> Path:
    (task / "config.pbtxt").unlink()
    return task / "config.pbtxt"


def sparse(file: Path) -> None:
    file.touch()
    os.truncate(file, 1 << 40)


def link_up(task: Path) -> None:
    for place in range(3):
        (task / "1" / f"up{place}").symlink_to("..")


FATAL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "version of 2^63": (lambda task: (task / str(2**63)).mkdir(), "9223372036854775808: (directory): as a version"),
    "version below -2^63": (lambda task: (task / f"-{2**64}").mkdir(), "as a version"),
    "number and text": (lambda task: (task / ("9" * 30 + ".bak")).mkdir(), "as a version"),
    "config a directory": (lambda task: empty(task).mkdir(), "config.pbtxt: (whole file): it cannot be read: it is a"),
    "config a FIFO": (lambda task: os.mkfifo(empty(task)), "it is a FIFO"),
    "config endless": (lambda task: empty(task).symlink_to("/dev/zero"), "it is a device"),
    "config large": (lambda task: sparse(empty(task)), "larger than 16 MiB"),
    "labels a FIFO": (lambda task: os.mkfifo(labels(task)), "config.pbtxt: output.X.label_filename: "),
    "labels a directory": (lambda task: labels(task).mkdir(), "labels.txt: it cannot be read: it is a directory"),
    "warmup a FIFO": (lambda task: os.mkfifo(warmup(task)), "model_warmup.inputs.I: "),
    "state a FIFO": (lambda task: os.mkfifo(state(task)), "sequence_batching.state.I: "),
    "links that lead back": (link_up, "more than 1000 files"),
    "link to everything": (lambda task: (task / "1" / "root").symlink_to("/"), "more than 1000 files"),
}


@pytest.mark.parametrize(("spoil", "says"), FATAL.values(), ids=FATAL)
def test_what_ends_or_stops_triton_is_refused(
    task: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], Any], says: str
) -> None:
    monkeypatch.setattr(loadable, "MOST_ENTRIES", 1000)
    spoil(task)
    with pytest.raises(TaskRefused) as refused:
        check_loadable(task)
    assert says in str(refused.value)
    assert str(task) in str(refused.value)
    assert refused.value.remedy


HARMLESS: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda task: None,
    "largest version": lambda task: (task / str(2**63 - 1)).mkdir(),
    "a file of that name": lambda task: (task / str(2**63)).touch(),
    "no config": empty,
    "config not UTF-8": lambda task: (task / "config.pbtxt").write_bytes(b"\xff"),
    "config of another Triton": lambda task: names_a_file(task, 'new_field { a_file: "x" }'),
    "no labels": labels,
    "labels": lambda task: labels(task).write_text("a\n"),
    "a FIFO that nobody opens": lambda task: os.mkfifo(task / "1" / "fifo"),
    "one link up": lambda task: (task / "1" / "up").symlink_to(".."),
    "a file that is not UTF-8": lambda task: (task / os.fsdecode(b"x\xff")).touch(),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_triton_survives_is_not(task: Path, change: Callable[[Path], Any]) -> None:
    change(task)
    check_loadable(task)
