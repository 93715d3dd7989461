"""A task as a row of `fmplex task list`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from live_server import status, task

from fmplex.cli.live import Live
from fmplex.cli.rows import row_of, short
from fmplex_backend.errors import TaskRefused
from fmplex_backend.repository.tasks import BrokenTask, TaskSpec
from fmplex_backend.repository.versions import Version
from fmplex_backend.status import TaskStatus


def spec(folder: Path, document: dict[str, Any], adapter: dict[str, Any] | None = None) -> TaskSpec:
    path = folder / "1"
    (path / "adapter").mkdir(parents=True)
    (path / "task.json").write_text(json.dumps({"family": "text-encoder"} | document))
    if adapter is not None:
        (path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    return TaskSpec("t", 3, folder / "config.pbtxt", 2.0, 0.05, None, Version(1, path, ()), ("TEXT",), {})


def live(*tasks: TaskStatus) -> Live:
    """A server that tells of these."""
    return Live("host", {"base": status(*tasks)}, {}, {each.name: each for each in tasks})


def test_a_task_that_is_served(tmp_path: Path) -> None:
    decoder = {"kind": "classification", "labels": ["a", "b"]}
    entry = spec(tmp_path, {"decoder": decoder, "metrics": {"rows": 9, "macro_f1": 0.7, "accuracy": 0.8}})
    row = row_of("t", "base", entry, live(task("t", queued=4, service_s=1.0), task("u", service_s=3.0)))
    assert row == {
        "task": "t",
        "backbone": "base",
        "tag": 3,
        "state": "serving",
        "weight": 2.0,
        "slo_ms": 50.0,
        "max_queue": None,
        "max_queue_bytes": None,
        "max_seconds": None,
        "max_running": None,
        "max_kv_share": None,
        "cache": False,
        "version": 1,
        "adapter": None,
        "decoder": "classification",
        "figure": "accuracy 0.8",
        "error": None,
        "queue": 4,
        "share": 0.25,
    }
    alone = row_of("t", "base", entry, None)
    assert (alone["queue"], alone["state"]) == (None, None)


def test_a_task_that_its_server_does_not_serve_as_the_entry_says(tmp_path: Path) -> None:
    entry = spec(tmp_path, {"decoder": {"kind": "embedding"}})
    former = task("t", state="serving former version", version=7, error="8/task.json: wrong")
    row = row_of("t", "base", entry, live(former))
    assert (row["state"], row["version"], row["error"]) == ("serving former version", 7, "8/task.json: wrong")
    missing = task("t", state="not served", version=None, error="load it")
    row = row_of("t", "base", entry, live(missing))
    assert (row["state"], row["version"], row["share"], row["error"]) == ("not served", 1, None, "load it")


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ({"peft_type": "LORA", "r": 8}, "LoRA r=8"),
        ({"peft_type": "LORA", "r": 4, "use_dora": True}, "DoRA r=4"),
        ({"peft_type": "IA3"}, "IA3"),
        (None, "unreadable"),
    ],
)
def test_the_kind_of_an_adapter(tmp_path: Path, config: dict[str, Any] | None, shown: str) -> None:
    entry = spec(tmp_path, {"decoder": {"kind": "embedding"}, "adapter": {"kind": "peft"}}, config)
    assert row_of("t", "base", entry, None)["adapter"] == shown


def test_a_task_that_cannot_be_served_says_why(tmp_path: Path) -> None:
    error = TaskRefused("t/config.pbtxt", "version_policy", "wrong", "Right it")
    row = row_of("t", "base", BrokenTask("t", None, error), None)
    assert (row["tag"], row["weight"], row["state"], row["error"]) == (None, None, "refused", str(error))
    unread = row_of("t", "base", spec(tmp_path, {"decoder": {"kind": "sorcery"}}), None)
    assert (unread["weight"], unread["decoder"]) == (2.0, None)
    assert "sorcery" in unread["error"]


@pytest.mark.parametrize(
    ("value", "text"), [(1.50, "1.5"), (2, "2"), ("späm", "späm"), (["späm"], '["späm"]'), ({"a": 1}, '{"a": 1}')]
)
def test_values_as_text(value: Any, text: str) -> None:
    assert short(value) == text
